/*
 * Who refers to what lies in given blocks of memory: one pass over all objects that the garbage collector knows.
 *
 * Nothing else runs during the pass, and no reference is held while it lasts: results are borrowed pointers until it
 * has ended, so no object lives longer for having been looked at, and none is freed meanwhile.
 *
 * A dict or tuple of texts and numbers is not tracked by the collector. Those are entered through what refers to them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Before 3.14 PyUnstable_GC_VisitObjects() leaves out what gc.freeze() has set aside. */
#define VISITS_ALL (PY_VERSION_HEX >= 0x030E0000)

#if !VISITS_ALL
#define Py_BUILD_CORE 1
#undef _PyGC_FINALIZED
#include <internal/pycore_gc.h>
#include <internal/pycore_interp.h>
#undef Py_BUILD_CORE
#endif

#include <stdint.h>
#include <stdlib.h>

#define FILTER_BITS 16
#define LARGEST_HEADER 32       /* bytes before an object in its block: two headers of 16 */
#define MOST_UNTRACKED 3        /* untracked containers inside of each other that are entered */

typedef struct {
    uintptr_t address;
    size_t size;
    int found;                  /* how many of its referrers were */
} Block;

typedef struct {
    Py_ssize_t block;
    PyObject *referent, *referrer;      /* borrowed until the pass has ended */
} Match;

typedef struct {
    Block *blocks;              /* by address */
    Py_ssize_t count;
    int most;                   /* referrers of one block */
    Match *matches;
    Py_ssize_t found, room;
    PyObject *referrer;         /* whose references are being visited */
    int depth;
    uint8_t filter[1 << FILTER_BITS];
} Search;

static uint32_t
filter_place(uintptr_t address)
{
    uintptr_t x = address >> 4;
    return (uint32_t)((x ^ (x >> FILTER_BITS)) & ((1u << FILTER_BITS) - 1));
}

static int
by_address(const void *left, const void *right)
{
    uintptr_t a = ((const Block *)left)->address, b = ((const Block *)right)->address;
    return (a > b) - (a < b);
}

/* An object lies at the begin of its block, or behind one or two headers of 16 bytes: the collector's, and that of
   attributes and weak references. */
static Block *
block_of(Search *search, uintptr_t address)
{
    if (!search->filter[filter_place(address)])
        return NULL;
    for (uintptr_t header = 0; header <= LARGEST_HEADER; header += 16) {
        Block key = {address - header, 0, 0};
        Block *block = bsearch(&key, search->blocks, search->count, sizeof key, by_address);
        if (block != NULL && header < block->size)
            return block;
    }
    return NULL;
}

static void
add(Search *search, Block *block, PyObject *referent, PyObject *referrer)
{
    if (block == NULL || block->found >= search->most || search->found >= search->room)
        return;
    block->found++;
    search->matches[search->found++] = (Match){block - search->blocks, referent, referrer};
}

/* Where an object keeps its entries, if not in its own block. */
static uintptr_t
buffer_of(PyObject *object)
{
    if (PyList_CheckExact(object))
        return (uintptr_t)((PyListObject *)object)->ob_item;
    if (PyDict_CheckExact(object))
        return (uintptr_t)((PyDictObject *)object)->ma_keys;
    if (PyByteArray_CheckExact(object))
        return (uintptr_t)((PyByteArrayObject *)object)->ob_bytes;
    if (PyAnySet_CheckExact(object) && ((PySetObject *)object)->table != ((PySetObject *)object)->smalltable)
        return (uintptr_t)((PySetObject *)object)->table;
    return 0;
}

static int
visit(PyObject *referent, void *argument)
{
    Search *search = argument;
    add(search, block_of(search, (uintptr_t)referent), referent, search->referrer);
    if (PyByteArray_CheckExact(referent))
        add(search, block_of(search, buffer_of(referent)), referent, search->referrer);
    else if ((PyDict_CheckExact(referent) || PyTuple_CheckExact(referent)) && !PyObject_GC_IsTracked(referent) &&
             search->depth < MOST_UNTRACKED) {
        PyObject *outer = search->referrer;
        add(search, block_of(search, buffer_of(referent)), referent, outer);
        search->referrer = referent;
        search->depth++;
        Py_TYPE(referent)->tp_traverse(referent, visit, search);
        search->depth--;
        search->referrer = outer;
    }
    return 0;
}

static int
enter(PyObject *object, void *argument)
{
    Search *search = argument;
    add(search, block_of(search, buffer_of(object)), object, Py_None);
    search->referrer = object;
    if (Py_TYPE(object)->tp_traverse != NULL)
        Py_TYPE(object)->tp_traverse(object, visit, search);
    return 1;
}

/* Every object that the collector tracks, those that gc.freeze() has set aside too. */
static void
enter_all(Search *search)
{
#if VISITS_ALL
    PyUnstable_GC_VisitObjects(enter, search);
#else
    struct _gc_runtime_state *state = &PyInterpreterState_Get()->gc;
    for (int number = 0; number <= NUM_GENERATIONS; number++) {
        PyGC_Head *head = number < NUM_GENERATIONS ? &state->generations[number].head : &state->permanent_generation.head;
        for (PyGC_Head *item = _PyGCHead_NEXT(head); item != head; item = _PyGCHead_NEXT(item))
            enter((PyObject *)(item + 1), search);
    }
#endif
}

static int
read_blocks(Search *search, PyObject *blocks)
{
    for (Py_ssize_t i = 0; i < search->count; i++) {
        unsigned long long address;
        Py_ssize_t size;
        PyObject *block = PyTuple_GET_ITEM(blocks, i);
        if (!PyTuple_Check(block)) {
            PyErr_SetString(PyExc_TypeError, "a block is a tuple of address and size");
            return -1;
        }
        if (!PyArg_ParseTuple(block, "Kn", &address, &size))
            return -1;
        search->blocks[i] = (Block){(uintptr_t)address, size > 0 ? (size_t)size : 1, 0};
        for (uintptr_t header = 0; header <= LARGEST_HEADER; header += 16)
            search->filter[filter_place((uintptr_t)address + header)] = 1;
    }
    qsort(search->blocks, search->count, sizeof(Block), by_address);
    return 0;
}

static PyObject *
results(Search *search)
{
    for (Py_ssize_t i = 0; i < search->found; i++) {
        Py_INCREF(search->matches[i].referent);
        Py_INCREF(search->matches[i].referrer);
    }
    PyObject *list = PyList_New(search->found);
    for (Py_ssize_t i = 0; i < search->found; i++) {
        Match *match = &search->matches[i];
        PyObject *item = NULL;
        if (list != NULL)
            item = Py_BuildValue("(KOO)", (unsigned long long)search->blocks[match->block].address, match->referent,
                                 match->referrer);
        if (item != NULL)
            PyList_SET_ITEM(list, i, item);
        else
            Py_CLEAR(list);
        Py_DECREF(match->referent);
        Py_DECREF(match->referrer);
    }
    return list;
}

static PyObject *
referrers(PyObject *module, PyObject *args)
{
    PyObject *given, *result = NULL;
    int most;
    if (!PyArg_ParseTuple(args, "O!i", &PyList_Type, &given, &most))
        return NULL;
    /* Reading a number may run code, which may change the list. */
    PyObject *blocks = PyList_AsTuple(given);
    Search *search = blocks != NULL ? calloc(1, sizeof(Search)) : NULL;
    if (search == NULL) {
        Py_XDECREF(blocks);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    search->most = most > 0 ? most : 1;
    search->count = PyTuple_GET_SIZE(blocks);
    search->room = search->count * search->most;
    search->blocks = calloc(search->count + 1, sizeof(Block));
    search->matches = calloc(search->room + 1, sizeof(Match));
    if (search->blocks == NULL || search->matches == NULL)
        PyErr_NoMemory();
    else if (read_blocks(search, blocks) == 0) {
        enter_all(search);
        result = results(search);
    }
    free(search->blocks);
    free(search->matches);
    free(search);
    Py_DECREF(blocks);
    return result;
}

PyDoc_STRVAR(referrers_doc, "referrers([(address, size), ...], most) -> [(address, referent, referrer), ...]\n\n"
                            "What refers to an object that lies in one of the blocks, at most so many of each block. The "
                            "referrer is None where a list, dict or set keeps its entries in the block.");

static PyMethodDef methods[] = {
    {"referrers", referrers, METH_VARARGS, referrers_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "celery_trace.heap._referrers",
    .m_doc = "Who refers to what lies in given blocks of memory.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__referrers(void)
{
    return PyModuleDef_Init(&definition);
}
