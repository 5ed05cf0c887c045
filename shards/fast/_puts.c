/* The compiled twin of reference.py, which is the specification: same arguments, same answers.
 *
 * A *plain put* is the msgpack array [tag, key, value] with tag a positive fixint and key and value of the bin family:
 *
 *     0x93  tag  (0xc4 u8 | 0xc5 u16 | 0xc6 u32) key...  (0xc4 u8 | 0xc5 u16 | 0xc6 u32) value...
 *
 * https://github.com/msgpack/msgpack/blob/master/spec.md. Whatever is not exactly that is answered with None, and
 * decoded by msgspec instead. Nothing here reads beyond the buffers it was given.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_bytes.h"
#include "_split.h"

static uint64_t
prefix_of(const uint8_t *key, uint32_t size)
{
    uint64_t prefix = 0;
    for (uint32_t i = 0; i < 8; i++) prefix = prefix << 8 | (i < size ? key[i] : 0);
    return prefix;
}

static int
compare(const void *left, const void *right)
{
    const Put *a = left, *b = right;
    if (a->prefix != b->prefix) return a->prefix < b->prefix ? -1 : 1;
    uint32_t shorter = a->key_size < b->key_size ? a->key_size : b->key_size;
    int order = memcmp(a->key, b->key, shorter);
    if (order) return order;
    if (a->key_size != b->key_size) return a->key_size < b->key_size ? -1 : 1;
    return a->ordinal < b->ordinal ? -1 : 1;
}

/* The last put of each key, as a list of (key, value) in key order. */
static PyObject *
pairs_of(const Put *puts, Py_ssize_t n)
{
    PyObject *list = PyList_New(0);
    if (list == NULL) return NULL;
    for (Py_ssize_t i = 0; i < n; i++) {
        const Put *put = &puts[i];
        if (i + 1 < n && put->key_size == put[1].key_size && !memcmp(put->key, put[1].key, put->key_size)) continue;
        PyObject *key = PyBytes_FromStringAndSize((const char *)put->key, put->key_size);
        PyObject *value = PyBytes_FromStringAndSize((const char *)put->value, put->value_size);
        PyObject *pair = key && value ? PyTuple_Pack(2, key, value) : NULL;
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (pair == NULL || PyList_Append(list, pair) < 0) {
            Py_XDECREF(pair);
            Py_DECREF(list);
            return NULL;
        }
        PyObject_GC_UnTrack(pair); /* bytes only: it cannot be part of a cycle */
        Py_DECREF(pair);
    }
    return list;
}

static PyObject *
sorted_puts(PyObject *module, PyObject *args)
{
    Py_buffer view;
    long tag;
    if (!PyArg_ParseTuple(args, "y*l", &view, &tag)) return NULL;
    const uint8_t *at = view.buf, *end = at + view.len;
    PyObject *result = NULL;
    Put *puts = NULL;
    uint32_t longest = 0;
    if (view.len < 5 || at[0] != 0xdd || tag < 0 || tag > 127) goto not_plain;
    Py_ssize_t n = (Py_ssize_t)((uint32_t)at[1] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 8 | at[4]);
    at += 5;
    if (n > (end - at) / 6) goto not_plain; /* the shortest put takes 6 bytes */
    puts = PyMem_Malloc((size_t)(n ? n : 1) * sizeof(Put));
    if (puts == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (read_put(&at, end, tag, &puts[i]) < 0) goto not_plain;
        puts[i].ordinal = (uint32_t)i;
        puts[i].prefix = prefix_of(puts[i].key, puts[i].key_size);
        if (puts[i].value_size > longest) longest = puts[i].value_size;
    }
    if (at != end) goto not_plain;
    qsort(puts, (size_t)n, sizeof(Put), compare);
    PyObject *pairs = pairs_of(puts, n);
    if (pairs != NULL) result = Py_BuildValue("NI", pairs, longest);
    goto done;
not_plain:
    result = Py_NewRef(Py_None);
done:
    PyMem_Free(puts);
    PyBuffer_Release(&view);
    return result;
}

/* shards.types.Entry, and where its fields index, term, data and time_ms lie in an object of exactly that type. */
static PyTypeObject *entry_type = NULL;
static Py_ssize_t entry_fields[4];

static int
find_entry(void)
{
    static const char *names[4] = {"index", "term", "data", "time_ms"};
    PyObject *types = PyImport_ImportModule("shardengine.shards.types");
    PyObject *type = types == NULL ? NULL : PyObject_GetAttrString(types, "Entry");
    Py_XDECREF(types);
    if (type == NULL) return -1;
    for (int i = 0; i < 4; i++) {
        PyObject *found = PyObject_GetAttrString(type, names[i]);
        int is_slot = found != NULL && Py_TYPE(found) == &PyMemberDescr_Type &&
                      (PyObject *)PyDescr_TYPE(found) == type &&
                      ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT_EX;
        if (is_slot) entry_fields[i] = ((PyMemberDescrObject *)found)->d_member->offset;
        Py_XDECREF(found);
        if (!is_slot) {
            if (found != NULL) PyErr_Format(PyExc_ImportError, "_puts: Entry.%s is no slot of Entry", names[i]);
            Py_DECREF(type);
            return -1;
        }
    }
    entry_type = (PyTypeObject *)type;
    return 0;
}

static inline PyObject *
field(PyObject *entry, int which)
{
    return *(PyObject **)((char *)entry + entry_fields[which]);
}

/* A number of exactly the type int and at most 64 bits, or -1. */
static inline int
u64(PyObject *object, uint64_t *number)
{
    if (object == NULL || !PyLong_CheckExact(object)) return -1;
    *number = PyLong_AsUnsignedLongLong(object);
    if (*number == UINT64_MAX && PyErr_Occurred()) {
        PyErr_Clear();
        return -1;
    }
    return 0;
}

/* The normal form of a chunk, as it is found. `runs` has room for one an entry. */
typedef struct {
    PyObject *datas;
    uint64_t clock, *runs;
    size_t run_count;
} Normal;

/* Returns 0, or -1 at the first entry that has no place in a normal form. Runs no other code before that, which could
 * change a list that is the caller's. Terms and times are mostly the same object again and again. */
static int
read_entries(PyObject *const *entries, Py_ssize_t n, Normal *form)
{
    uint64_t first = 0, before = 0, index, term = 0, time_ms = 0;
    PyObject *last_term = NULL, *last_time = NULL;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *entry = entries[i];
        if (i + 2 * AHEAD < n) {
            __builtin_prefetch(entries[i + 2 * AHEAD]);
            if (Py_TYPE(entries[i + AHEAD]) == entry_type) __builtin_prefetch(field(entries[i + AHEAD], 2));
        }
        if (Py_TYPE(entry) != entry_type) return -1;
        PyObject *data = field(entry, 2);
        if (data == NULL || !PyBytes_CheckExact(data) || u64(field(entry, 0), &index) < 0) return -1;
        if ((i == 0 || field(entry, 1) != last_term) && u64(field(entry, 1), &term) < 0) return -1;
        if ((i == 0 || field(entry, 3) != last_time) && u64(field(entry, 3), &time_ms) < 0) return -1;
        last_term = field(entry, 1), last_time = field(entry, 3);
        if (i == 0) first = index;
        if (index < first || index - first != (uint64_t)i || (i > 0 && term < before)) return -1;
        int rises = time_ms > form->clock;
        if (rises) form->clock = time_ms;
        if (rises || i == 0 || term != before) {
            uint64_t *run = form->runs + 3 * form->run_count++;
            run[0] = index, run[1] = term, run[2] = form->clock;
        }
        before = term;
        PyList_SET_ITEM(form->datas, i, Py_NewRef(data));
    }
    return 0;
}

/* (index, term) where the term changes, and of the first entry. */
static PyObject *
terms_of(const Normal *form)
{
    PyObject *terms = PyList_New(0);
    for (size_t i = 0; terms != NULL && i < form->run_count; i++) {
        const uint64_t *run = form->runs + 3 * i;
        if (i > 0 && run[1] == run[1 - 3]) continue;
        PyObject *turn = Py_BuildValue("KK", (unsigned long long)run[0], (unsigned long long)run[1]);
        if (turn == NULL || PyList_Append(terms, turn) < 0) Py_CLEAR(terms);
        Py_XDECREF(turn);
    }
    return terms;
}

static PyObject *
normal_form(PyObject *module, PyObject *args)
{
    PyObject *given, *result = NULL;
    Normal form = {NULL, 0, NULL, 0};
    unsigned long long clock;
    if (!PyArg_ParseTuple(args, "OK", &given, &clock)) return NULL;
    PyObject *entries = PyList_CheckExact(given) ? Py_NewRef(given) : PySequence_Tuple(given);
    if (entries == NULL) return NULL;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(entries);
    form.clock = clock;
    form.datas = PyList_New(n);
    form.runs = PyMem_Malloc((n ? (size_t)n : 1) * RUN_BYTES);
    if (form.datas == NULL || form.runs == NULL) {
        PyErr_NoMemory();
    } else if (n == 0 || n != PySequence_Fast_GET_SIZE(entries) || /* the collector may have run, and anything with it */
               read_entries(PySequence_Fast_ITEMS(entries), n, &form) < 0) {
        result = Py_NewRef(Py_None);
    } else {
        PyObject *terms = terms_of(&form);
        if (terms != NULL)
            result = Py_BuildValue("KONKy#", (unsigned long long)form.runs[0], form.datas, terms,
                                   (unsigned long long)form.clock, (char *)form.runs,
                                   (Py_ssize_t)(RUN_BYTES * form.run_count));
    }
    PyMem_Free(form.runs);
    Py_XDECREF(form.datas);
    Py_DECREF(entries);
    return result;
}

static PyMethodDef methods[] = {
    {"normal_form", normal_form, METH_VARARGS, NULL},
    {"weigh_puts", weigh_puts, METH_VARARGS, NULL},
    {"fill_parts", fill_parts, METH_VARARGS, NULL},
    {"sorted_puts", sorted_puts, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_puts", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC
PyInit__puts(void)
{
    if (entry_type == NULL && find_entry() < 0) return NULL;
    return PyModule_Create(&definition);
}
