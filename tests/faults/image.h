/* What a power loss would leave: only what was synced. Part of shim.c.
 *
 * In the directory `image` of the control file, KEY holds a file as of its last sync, KEY.dir the names in a directory
 * (root.dir: in the scope itself), one a line: "f" or "d", KEY, name. A key is an inode with its time of birth, since
 * numbers come again. A page that a failed sync was to write is lost, as the kernel loses it: it stays what it was
 * until it is written anew, which KEY.lost, the file as it then was, tells.
 */
enum { PAGE = 4096, MAPS = 64, KEY = 48 };

static struct map {
    char *at;
    size_t size;
    off_t from;
    char key[KEY];
} maps[MAPS];
static _Atomic unsigned maps_made;

static int key_of(int directory, const char *name, char *key)
{
    struct statx found;
    if (statx(directory, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME | STATX_TYPE, &found))
        return 0;
    snprintf(key, KEY, "%llu-%lld.%09u", (unsigned long long)found.stx_ino, (long long)found.stx_btime.tv_sec,
             found.stx_btime.tv_nsec);
    return S_ISDIR(found.stx_mode) ? 'd' : 'f';
}

static int open_image(const char *key, const char *suffix, int flags)
{
    char path[TEXT + KEY + 8];
    snprintf(path, sizeof path, "%s/%s%s", control->image, key, suffix);
    return open(path, O_RDWR | O_CLOEXEC | flags, 0600);
}

/* One page comes to the disk, or, if the sync failed, is lost. */
static void page_synced(int image, int lost, const char *page, size_t size, off_t at, int failed)
{
    char before[PAGE];
    if (failed) {
        pwrite(lost, page, size, at);
    } else if (lost < 0 || pread(lost, before, size, at) != (ssize_t)size || memcmp(before, page, size)) {
        pwrite(image, page, size, at);
        before[0] = (char)~page[0];
        if (lost >= 0)
            pwrite(lost, before, 1, at);
    }
}

static void names_synced(int descriptor, const char *key)
{
    char path[64], child[KEY];
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    DIR *directory = opendir(path);
    int image = open_image(key, ".dir", O_CREAT | O_TRUNC), kind;
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") &&
            (kind = key_of(dirfd(directory), entry->d_name, child)))
            dprintf(image, "%c %s %s\n", kind, child, entry->d_name);
    close(image);
    if (directory)
        closedir(directory);
}

/* All of a file, or of a directory, was synced. */
static void image_file(int descriptor, int failed)
{
    char key[KEY], name[PATH_MAX], page[PAGE];
    struct stat status;
    if (!key_of(descriptor, "", key) || fstat(descriptor, &status))
        return;
    name_of(descriptor, name);
    if (S_ISDIR(status.st_mode)) {
        if (!failed)
            names_synced(descriptor, strcmp(name, control->scope) ? key : "root");
        return;
    }
    int image = open_image(key, "", O_CREAT), lost = open_image(key, ".lost", failed ? O_CREAT : 0), source = descriptor;
    if ((fcntl(descriptor, F_GETFL) & O_ACCMODE) == O_WRONLY) {
        snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
        source = open(name, O_RDONLY | O_CLOEXEC);
    }
    ssize_t size;
    for (off_t at = 0; (size = pread(source, page, PAGE, at)) > 0; at += size)
        page_synced(image, lost, page, (size_t)size, at, failed);
    if (!failed)
        ftruncate(image, status.st_size);
    if (source != descriptor)
        close(source);
    close(lost);
    close(image);
}

static void image_mapped(char *at, size_t size, int failed)
{
    for (unsigned number = 0; number < MAPS; number++) {
        struct map *map = &maps[number];
        if (!map->at || at < map->at || at + size > map->at + map->size)
            continue;
        int image = open_image(map->key, "", O_CREAT), lost = open_image(map->key, ".lost", failed ? O_CREAT : 0);
        for (size_t done = 0; done < size; done += PAGE)
            page_synced(image, lost, at + done, PAGE, map->from + (at - map->at) + (off_t)done, failed);
        close(lost);
        close(image);
        return;
    }
}

static void note_map(void *at, size_t size, off_t from, int descriptor)
{
    struct map map = {at, size, from, ""};
    if (!key_of(descriptor, "", map.key))
        return;
    for (unsigned number = 0; number < MAPS; number++)
        if (maps[number].at == at)
            maps[number].at = NULL; /* unmapped meanwhile */
    maps[atomic_fetch_add(&maps_made, 1) % MAPS] = map;
}
