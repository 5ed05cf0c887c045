/* A chunk is split in two passes: weigh_puts finds whose each put is, and how long the parts get, so that fill_parts can
 * write them where they belong. See _puts.c. */

#ifndef SHARDENGINE_SPLIT_H
#define SHARDENGINE_SPLIT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "_bytes.h"

#define SLOT_MASK 16383u
#define SHARDS_MAX 256
#define HEAD_BYTES 24 /* of a part: see shards/part.py */
#define RUN_BYTES 24

/* A chunk that is split: its entries' data, the index of the first, and its packed runs. */
typedef struct {
    PyObject *datas;
    Py_ssize_t entries;
    uint64_t base;
    const uint8_t *runs;
    size_t run_count;
} Chunk;

/* What a shard gets of it: so many entries, with so many bytes of data, and of the runs those that hold for one of them.
 * `held` is one more than the number of the last of those. `part` is where it is written, `room` bytes; `offsets`,
 * `bytes` and `run` are where the next ones go. */
typedef struct {
    size_t entries, data_bytes, runs, held, room;
    uint8_t *part, *offsets, *bytes, *run;
} Share;

static int
read_chunk(Chunk *chunk, unsigned long long base, PyObject *runs)
{
    chunk->entries = PyList_GET_SIZE(chunk->datas);
    chunk->base = base;
    chunk->runs = (const uint8_t *)PyBytes_AS_STRING(runs);
    chunk->run_count = (size_t)PyBytes_GET_SIZE(runs) / RUN_BYTES;
    if (chunk->entries <= 0xffffffffll && chunk->run_count && PyBytes_GET_SIZE(runs) % RUN_BYTES == 0) return 0;
    PyErr_SetString(PyExc_ValueError, "weigh_puts: more entries than an offset counts, or no whole run");
    return -1;
}

/* The number of the run that holds for the entry at `place`, which is not before the one asked for last. */
static inline size_t
run_at(const Chunk *chunk, size_t run, Py_ssize_t place)
{
    while (run + 1 < chunk->run_count && load64(chunk->runs + RUN_BYTES * (run + 1)) <= chunk->base + (uint64_t)place)
        run++;
    return run;
}

static inline void
count(Share *share, size_t size, size_t run)
{
    share->entries++;
    share->data_bytes += size;
    share->runs += share->held != run + 1;
    share->held = run + 1;
}

/* The length of a part: see shards/part.py. */
static inline uint64_t
length_of(const Share *share)
{
    if (share->entries == 0) return 0;
    return HEAD_BYTES + RUN_BYTES * share->runs + 4 * share->entries + 5 + share->data_bytes;
}

/* Whose each put is, and what each shard gets. Returns -1 at the first that is not plain. */
static int
weigh(const Chunk *chunk, long tag, uint32_t key_max, uint32_t value_max, const uint8_t *table, uint8_t *owners,
      Share *shares)
{
    size_t run = 0;
    for (Py_ssize_t i = 0; i < chunk->entries; i++) {
        PyObject *data = PyList_GET_ITEM(chunk->datas, i);
        if (!PyBytes_CheckExact(data)) return -1;
        if (i + AHEAD < chunk->entries) __builtin_prefetch((char *)PyList_GET_ITEM(chunk->datas, i + AHEAD) + 64);
        const uint8_t *at = (const uint8_t *)PyBytes_AS_STRING(data);
        const uint8_t *end = at + PyBytes_GET_SIZE(data);
        Put put;
        if (read_put(&at, end, tag, &put) < 0 || at != end) return -1;
        if (put.key_size < 1 || put.key_size > key_max || put.value_size > value_max) return -1;
        owners[i] = table[xxh64(put.key, put.key_size) & SLOT_MASK];
        run = run_at(chunk, run, i);
        count(&shares[owners[i]], (size_t)PyBytes_GET_SIZE(data), run);
    }
    return 0;
}

/* The lengths of the parts of `shards` shards; ValueError when a shard beyond those gets something. */
static PyObject *
lengths_of(const Share *shares, long shards)
{
    for (long shard = shards; shard < SHARDS_MAX; shard++)
        if (shares[shard].entries) return PyErr_Format(PyExc_ValueError, "weigh_puts: the table gives slots to shard %ld", shard);
    PyObject *lengths = PyList_New(shards);
    for (long shard = 0; lengths != NULL && shard < shards; shard++) {
        PyObject *length = PyLong_FromUnsignedLongLong(length_of(&shares[shard]));
        if (length == NULL)
            Py_CLEAR(lengths);
        else
            PyList_SET_ITEM(lengths, shard, length);
    }
    return lengths;
}

static PyObject *
weigh_puts(PyObject *module, PyObject *args)
{
    Chunk chunk;
    PyObject *table, *runs;
    long tag, shards;
    unsigned int key_max, value_max;
    unsigned long long base;
    Share shares[SHARDS_MAX] = {{0}};
    if (!PyArg_ParseTuple(args, "O!lIISlKS", &PyList_Type, &chunk.datas, &tag, &key_max, &value_max, &table, &shards,
                          &base, &runs))
        return NULL;
    if (PyBytes_GET_SIZE(table) != SLOT_MASK + 1 || shards < 1 || shards > SHARDS_MAX || tag < 0 || tag > 127) {
        PyErr_SetString(PyExc_ValueError, "weigh_puts: a table of 16,384 slots, 1 to 256 shards, a tag of 0 to 127");
        return NULL;
    }
    if (read_chunk(&chunk, base, runs) < 0) return NULL;
    PyObject *owners = PyBytes_FromStringAndSize(NULL, chunk.entries);
    if (owners == NULL) return NULL;
    if (weigh(&chunk, tag, key_max, value_max, (const uint8_t *)PyBytes_AS_STRING(table),
              (uint8_t *)PyBytes_AS_STRING(owners), shares) < 0) {
        Py_DECREF(owners);
        Py_RETURN_NONE;
    }
    PyObject *lengths = lengths_of(shares, shards);
    if (lengths == NULL) {
        Py_DECREF(owners);
        return NULL;
    }
    return Py_BuildValue("NN", owners, lengths);
}

/* Take the memory of each view, by shard; `n` of them are taken. Returns -1 at the first that is none to write to. */
static int
take_views(PyObject *views, Py_buffer *taken, int *n, Share *shares)
{
    PyObject *key, *view;
    Py_ssize_t at = 0;
    while (PyDict_Next(views, &at, &key, &view)) {
        int overflow;
        long shard = PyLong_CheckExact(key) ? PyLong_AsLongAndOverflow(key, &overflow) : -1;
        if (shard < 0 || shard >= SHARDS_MAX || PyObject_GetBuffer(view, &taken[*n], PyBUF_WRITABLE) < 0) return -1;
        shares[shard].part = taken[*n].buf;
        shares[shard].room = (size_t)taken[(*n)++].len;
        if (shares[shard].room == 0) return -1;
    }
    return 0;
}

/* What each shard gets. Returns -1 when that is not exactly what its view has room for. */
static int
measure(const Chunk *chunk, const uint8_t *owners, Share *shares)
{
    size_t run = 0;
    for (Py_ssize_t i = 0; i < chunk->entries; i++) {
        PyObject *data = PyList_GET_ITEM(chunk->datas, i);
        if (!PyBytes_CheckExact(data)) return -1;
        if (PyBytes_GET_SIZE(data) == 0) continue;
        Share *share = &shares[owners[i]];
        run = run_at(chunk, run, i);
        count(share, (size_t)PyBytes_GET_SIZE(data), run);
        if (share->data_bytes > share->room) return -1;
    }
    for (int shard = 0; shard < SHARDS_MAX; shard++)
        if (length_of(&shares[shard]) != shares[shard].room) return -1;
    return 0;
}

/* Write the head of a part, and find where the rest goes. */
static void
begin_part(const Chunk *chunk, Share *share)
{
    uint64_t length = share->room;
    uint32_t entries = (uint32_t)share->entries, runs = (uint32_t)share->runs;
    memcpy(share->part, &entries, 4);
    memcpy(share->part + 4, &runs, 4);
    memcpy(share->part + 8, &chunk->base, 8);
    memcpy(share->part + 16, &length, 8);
    share->run = share->part + HEAD_BYTES;
    share->offsets = share->run + RUN_BYTES * share->runs;
    share->bytes = share->offsets + 4 * share->entries;
    *share->bytes++ = 0xdd;
    for (int shift = 24; shift >= 0; shift -= 8) *share->bytes++ = (uint8_t)(entries >> shift);
    share->held = 0;
}

static void
fill(const Chunk *chunk, const uint8_t *owners, Share *shares)
{
    size_t run = 0;
    for (int shard = 0; shard < SHARDS_MAX; shard++)
        if (shares[shard].entries) begin_part(chunk, &shares[shard]);
    for (Py_ssize_t i = 0; i < chunk->entries; i++) {
        PyObject *data = PyList_GET_ITEM(chunk->datas, i);
        uint32_t place = (uint32_t)i;
        size_t size = (size_t)PyBytes_GET_SIZE(data);
        if (size == 0) continue;
        Share *share = &shares[owners[i]];
        memcpy(share->offsets, &place, 4);
        share->offsets += 4;
        memcpy(share->bytes, PyBytes_AS_STRING(data), size);
        share->bytes += size;
        run = run_at(chunk, run, i);
        if (share->held != run + 1) {
            share->held = run + 1;
            memcpy(share->run, chunk->runs + RUN_BYTES * run, RUN_BYTES);
            share->run += RUN_BYTES;
        }
    }
}

static PyObject *
fill_parts(PyObject *module, PyObject *args)
{
    Chunk chunk;
    PyObject *owners, *runs, *given;
    unsigned long long base;
    Share shares[SHARDS_MAX] = {{0}};
    Py_buffer taken[SHARDS_MAX];
    int n = 0;
    if (!PyArg_ParseTuple(args, "O!SKSO!", &PyList_Type, &chunk.datas, &owners, &base, &runs, &PyDict_Type, &given))
        return NULL;
    PyObject *views = PyDict_Copy(given); /* ours alone, while asking for their memory may run anything */
    if (views == NULL) return NULL;
    const uint8_t *owner = (const uint8_t *)PyBytes_AS_STRING(owners);
    int fits = take_views(views, taken, &n, shares) == 0 && read_chunk(&chunk, base, runs) == 0 &&
               chunk.entries == PyBytes_GET_SIZE(owners) && measure(&chunk, owner, shares) == 0;
    if (fits) fill(&chunk, owner, shares);
    while (n) PyBuffer_Release(&taken[--n]);
    Py_DECREF(views);
    if (fits) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "fill_parts: the data, their owners, the runs and the views do not fit together");
    return NULL;
}

#endif
