/* Fails chosen system calls of chosen processes, by name and count. Preloaded into an engine's host, and inherited by
 * its workers; tests/faults/control.py builds it and writes the file that controls it.
 *
 * The control file is named by FAULTS_CONTROL and mapped by every process. It says which phase of its life the engine
 * is in (0: calls pass uncounted), and which calls of which process fail in it: those whose number within the phase
 * lies in first..last. Process 0 is the host, 1 + N the worker of shard N, as its command line tells. Only what concerns
 * files below `scope` counts, and what makes processes, threads, pipes and sockets.
 *
 * A call that fails is not made. A forked child, before it executes a program, passes everything but that.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define CALLS /* control.py reads this list */ \
    X(open) X(read) X(write) X(pwrite) X(fsync) X(fdatasync) X(msync) X(fallocate) X(truncate) X(rename) X(mkdir) \
    X(unlink) X(link) X(mmap) X(lock) X(socketpair) X(pipe) X(send) X(recv) X(fork) X(exec) X(thread)
#define X(name) CALL_##name,
enum { CALLS CALLS_COUNT };
#undef X

enum { PHASES = 16, PROCESSES = 16, SHORT = 1000, TEXT = 1024, STORM_EXIT = 97 };

struct control {
    char scope[TEXT];
    char failed[TEXT]; /* what the first failed call was made on */
    char image[TEXT];  /* where what is synced is kept; see image.h */
    _Atomic uint64_t imaging, phase, starts, starts_max, fired;
    struct { uint64_t phase, process, call, first, last, error; } rule;
    _Atomic uint64_t hits[PHASES][PROCESSES][CALLS_COUNT];
};

static struct control *control;
static uint64_t process;
static pid_t self;
static __thread int inside; /* calls of our own pass */

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* ---- who we are ------------------------------------------------------------------------------------------------ */

static uint64_t which_process(void)
{
    static char line[1 << 16];
    int descriptor = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = descriptor < 0 ? -1 : read(descriptor, line, sizeof line - 1);
    close(descriptor);
    for (ssize_t at = 0; at < size; at++)
        if (line[at] == 0)
            line[at] = ' ';
    if (!strstr(line, "shards.worker") && !strstr(line, "shardengine worker"))
        return 0;
    const char *told = strstr(line, "worker shard "), *json = strstr(line, "\"shard\":");
    return 1 + (told ? strtoull(told + 13, NULL, 10) : json ? strtoull(json + 8, NULL, 10) : 0) % (PROCESSES - 1);
}

/* From here on this process is under control, as this one. */
void faults_begin_as(const char *path, uint64_t number)
{
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0)
        return; /* the life is over */
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (map == MAP_FAILED)
        abort();
    process = number;
    self = getpid();
    control = map;
    if (atomic_fetch_add(&control->starts, 1) >= control->starts_max)
        _exit(STORM_EXIT);
}

/* As what its command line tells. Also called by a forked child that executes nothing. */
void faults_begin(const char *path) { faults_begin_as(path, which_process()); }

__attribute__((constructor)) static void begin(void)
{
    if (getenv("FAULTS_CONTROL"))
        faults_begin(getenv("FAULTS_CONTROL"));
}

/* ---- whether a call fails -------------------------------------------------------------------------------------- */

/* The errno to fail this call with; 0: make it. */
static int judge(int call, const char *what)
{
    uint64_t phase = atomic_load(&control->phase);
    if (phase == 0 || phase >= PHASES)
        return 0;
    uint64_t hit = 1 + atomic_fetch_add(&control->hits[phase][process][call], 1);
    if (control->rule.phase != phase || control->rule.process != process || control->rule.call != (uint64_t)call ||
        hit < control->rule.first || hit > control->rule.last)
        return 0;
    if (atomic_fetch_add(&control->fired, 1) == 0)
        snprintf(control->failed, TEXT, "%s", what);
    return (int)control->rule.error;
}

static int ours(void) { return control && !inside && getpid() == self; }

static int in_scope(const char *path) { return strncmp(path, control->scope, strlen(control->scope)) == 0; }

static int judge_call(int call) { return ours() ? judge(call, "") : 0; }

static void name_of(int descriptor, char *name)
{
    char link[64];
    snprintf(link, sizeof link, descriptor == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, name, PATH_MAX - 1);
    name[size < 0 ? 0 : size] = 0;
}

static int judge_file(int call, int descriptor)
{
    if (!ours() || descriptor < 0)
        return 0;
    char name[PATH_MAX];
    int before = errno;
    name_of(descriptor, name);
    errno = before;
    return in_scope(name) ? judge(call, name) : 0;
}

static int judge_path(int call, int directory, const char *path)
{
    if (!ours() || !path)
        return 0;
    char name[2 * PATH_MAX];
    int before = errno;
    name[0] = 0;
    if (path[0] != '/') {
        name_of(directory, name);
        strcat(name, "/");
    }
    strncat(name, path, PATH_MAX - 1);
    errno = before;
    return in_scope(name) ? judge(call, name) : 0;
}

#include "image.h"

static int imaged(void) { return ours() && atomic_load(&control->imaging); }

/* After a sync, made or failed: what it did to what a power loss would leave. */
static int synced(int descriptor, int result)
{
    char name[PATH_MAX];
    int before = errno;
    if (imaged() && (name_of(descriptor, name), in_scope(name))) {
        inside = 1;
        image_file(descriptor, result);
        inside = 0;
    }
    errno = before;
    return result;
}

/* What is there before a life begins counts as synced. */
void faults_image(int descriptor) { synced(descriptor, 0); }

#define FAIL(error, value) \
    do { \
        int number = (error); \
        if (number && number != SHORT) { \
            errno = number; \
            return value; \
        } \
    } while (0)

/* ---- the calls ------------------------------------------------------------------------------------------------- */

#define ON_DESCRIPTOR(type, name, call, declared, passed) \
    type name declared \
    { \
        REAL(name); \
        FAIL(judge_file(CALL_##call, descriptor), -1); \
        return real passed; \
    }

#define ON_PATH(name, call, directory, declared, passed) \
    int name declared \
    { \
        REAL(name); \
        FAIL(judge_path(CALL_##call, directory, path), -1); \
        return real passed; \
    }

#define ON_NOTHING(type, name, call, declared, passed) \
    type name declared \
    { \
        REAL(name); \
        FAIL(judge_call(CALL_##call), -1); \
        return real passed; \
    }

/* A short write takes half. */
#define WRITE(name, call, declared, passed) \
    ssize_t name declared \
    { \
        REAL(name); \
        int told = judge_file(CALL_##call, descriptor); \
        FAIL(told, -1); \
        if (told == SHORT) \
            size = (size + 1) / 2; \
        return real passed; \
    }

WRITE(write, write, (int descriptor, const void *data, size_t size), (descriptor, data, size))
WRITE(sendfile, write, (int descriptor, int from, off_t *at, size_t size), (descriptor, from, at, size))
WRITE(sendfile64, write, (int descriptor, int from, off64_t *at, size_t size), (descriptor, from, at, size))
WRITE(pwrite, pwrite, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at))
WRITE(pwrite64, pwrite, (int descriptor, const void *data, size_t size, off64_t at), (descriptor, data, size, at))
ON_DESCRIPTOR(ssize_t, writev, write, (int descriptor, const struct iovec *data, int count), (descriptor, data, count))
ON_DESCRIPTOR(ssize_t, read, read, (int descriptor, void *data, size_t size), (descriptor, data, size))
ON_DESCRIPTOR(ssize_t, pread, read, (int descriptor, void *data, size_t size, off_t at), (descriptor, data, size, at))
ON_DESCRIPTOR(ssize_t, pread64, read, (int descriptor, void *data, size_t size, off64_t at),
              (descriptor, data, size, at))
#define SYNC(name) \
    int name(int descriptor) \
    { \
        REAL(name); \
        FAIL(judge_file(CALL_##name, descriptor), synced(descriptor, -1)); \
        return synced(descriptor, real(descriptor)); \
    }

SYNC(fsync)
SYNC(fdatasync)
ON_DESCRIPTOR(int, ftruncate, truncate, (int descriptor, off_t size), (descriptor, size))
ON_DESCRIPTOR(int, ftruncate64, truncate, (int descriptor, off64_t size), (descriptor, size))
ON_DESCRIPTOR(int, fallocate, fallocate, (int descriptor, int mode, off_t at, off_t size), (descriptor, mode, at, size))
ON_DESCRIPTOR(int, fallocate64, fallocate, (int descriptor, int mode, off64_t at, off64_t size),
              (descriptor, mode, at, size))
ON_DESCRIPTOR(int, flock, lock, (int descriptor, int what), (descriptor, what))
ON_PATH(truncate, truncate, AT_FDCWD, (const char *path, off_t size), (path, size))
ON_PATH(truncate64, truncate, AT_FDCWD, (const char *path, off64_t size), (path, size))
ON_PATH(rename, rename, AT_FDCWD, (const char *path, const char *to), (path, to))
ON_PATH(renameat, rename, from, (int from, const char *path, int into, const char *to), (from, path, into, to))
ON_PATH(renameat2, rename, from, (int from, const char *path, int into, const char *to, unsigned flags),
        (from, path, into, to, flags))
ON_PATH(mkdir, mkdir, AT_FDCWD, (const char *path, mode_t mode), (path, mode))
ON_PATH(mkdirat, mkdir, in, (int in, const char *path, mode_t mode), (in, path, mode))
ON_PATH(unlink, unlink, AT_FDCWD, (const char *path), (path))
ON_PATH(rmdir, unlink, AT_FDCWD, (const char *path), (path))
ON_PATH(unlinkat, unlink, in, (int in, const char *path, int flags), (in, path, flags))
ON_PATH(link, link, AT_FDCWD, (const char *path, const char *to), (path, to))
ON_PATH(linkat, link, from, (int from, const char *path, int into, const char *to, int flags),
        (from, path, into, to, flags))
ON_NOTHING(int, socketpair, socketpair, (int domain, int type, int protocol, int pair[2]),
           (domain, type, protocol, pair))
ON_NOTHING(int, pipe, pipe, (int pair[2]), (pair))
ON_NOTHING(int, pipe2, pipe, (int pair[2], int flags), (pair, flags))
ON_NOTHING(ssize_t, send, send, (int to, const void *data, size_t size, int flags), (to, data, size, flags))
ON_NOTHING(ssize_t, sendmsg, send, (int to, const struct msghdr *message, int flags), (to, message, flags))
ON_NOTHING(ssize_t, recv, recv, (int from, void *data, size_t size, int flags), (from, data, size, flags))
ON_NOTHING(ssize_t, recvmsg, recv, (int from, struct msghdr *message, int flags), (from, message, flags))

int msync(void *at, size_t size, int flags)
{
    REAL(msync);
    int told = judge_call(CALL_msync), result = told ? -1 : real(at, size, flags), before = told ? told : errno;
    if (imaged()) {
        inside = 1;
        image_mapped(at, size, result);
        inside = 0;
    }
    errno = before;
    return result;
}

/* A mode, or a pointer to a lock, may follow; taking what is not there is harmless on the ABIs we run on. */
#define OPEN(name, directory, declared, passed) \
    int name declared \
    { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        FAIL(judge_path(CALL_open, directory, path), -1); \
        return real passed; \
    }

OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, in, (int in, const char *path, int flags, ...), (in, path, flags, mode))
OPEN(openat64, in, (int in, const char *path, int flags, ...), (in, path, flags, mode))

#define FCNTL(name) \
    int name(int descriptor, int what, ...) \
    { \
        REAL(name); \
        va_list more; \
        va_start(more, what); \
        void *argument = va_arg(more, void *); \
        va_end(more); \
        if (what == F_SETLK || what == F_SETLKW || what == F_OFD_SETLK || what == F_OFD_SETLKW) \
            FAIL(judge_file(CALL_lock, descriptor), -1); \
        return real(descriptor, what, argument); \
    }

FCNTL(fcntl)
FCNTL(fcntl64)

/* These answer with the number itself. */
#define ANSWERING(name, judged, declared, passed) \
    int name declared \
    { \
        REAL(name); \
        int told = judged; \
        return told && told != SHORT ? told : real passed; \
    }

ANSWERING(posix_fallocate, judge_file(CALL_fallocate, descriptor), (int descriptor, off_t at, off_t size),
          (descriptor, at, size))
ANSWERING(posix_fallocate64, judge_file(CALL_fallocate, descriptor), (int descriptor, off64_t at, off64_t size),
          (descriptor, at, size))
ANSWERING(pthread_create, judge_call(CALL_thread),
          (pthread_t *thread, const pthread_attr_t *how, void *(*main)(void *), void *argument),
          (thread, how, main, argument))
ANSWERING(posix_spawn, judge_call(CALL_fork),
          (pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *how,
           char *const arguments[], char *const environment[]),
          (pid, path, actions, how, arguments, environment))

/* Memory without a file is everybody's, and passes. */
#define MMAP(name, offset) \
    void *name(void *at, size_t size, int allowed, int flags, int descriptor, offset from) \
    { \
        REAL(name); \
        if (!(flags & MAP_ANONYMOUS)) \
            FAIL(judge_file(CALL_mmap, descriptor), MAP_FAILED); \
        void *map = real(at, size, allowed, flags, descriptor, from); \
        if (map != MAP_FAILED && imaged() && (flags & MAP_SHARED) && (allowed & PROT_WRITE)) \
            note_map(map, size, from, descriptor); \
        return map; \
    }

MMAP(mmap, off_t)
MMAP(mmap64, off64_t)

/* Who is refused a vfork asks for a fork: that is one attempt. A vfork is made a fork, since no C function can return
 * from one in the child. */
static __thread int refused_vfork;

pid_t fork(void)
{
    REAL(fork);
    int told = refused_vfork ? refused_vfork : judge_call(CALL_fork);
    refused_vfork = 0;
    FAIL(told, -1);
    return real();
}

pid_t vfork(void)
{
    pid_t child = fork();
    refused_vfork = child < 0 ? errno : 0;
    return child;
}

#define EXEC(name, declared, passed) \
    int name declared \
    { \
        REAL(name); \
        FAIL(control ? judge(CALL_exec, path) : 0, -1); \
        return real passed; \
    }

EXEC(execv, (const char *path, char *const arguments[]), (path, arguments))
EXEC(execve, (const char *path, char *const arguments[], char *const environment[]), (path, arguments, environment))
