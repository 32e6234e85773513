/*
 * Finds the referrers of objects in given blocks of memory, in one pass over all objects that the garbage collector knows.
 *
 * Nothing else runs during the pass, and it holds no references: results are borrowed pointers until it has ended, so no
 * object lives longer because of it, and none is freed meanwhile.
 *
 * A dict or tuple of texts and numbers is not tracked by the collector. Those are entered through what refers to them.
 *
 * A chain, such as a linked list or the frames of tracebacks, may be too long for one pass per link, and grow faster. So a
 * pass can climb: it records all references to objects of the wanted ones' types, and afterwards goes up from object to
 * object of one type, to whatever of another type refers to one of them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
#error "The pass over all objects relies on the GIL"
#endif

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
#define LARGEST_STRUCT 256      /* bytes of an object's struct that are looked through */
#define MOST_UNTRACKED 3        /* untracked containers inside of each other that are entered */
#define LINK_BITS 17
#define MOST_EDGES (1 << (LINK_BITS - 1))       /* references to links of chains that are noted */
#define TYPE_BITS 12

typedef struct {
    uintptr_t address;
    size_t size;
    int found;                  /* how many of its referrers were */
    Py_ssize_t chain;           /* the block whose chain it is part of; itself as long as none is climbed */
} Block;

typedef struct {
    PyObject *object;           /* borrowed; NULL where the place is free */
    int edge;                   /* the first reference to it, as place + 1 */
    Py_ssize_t block;           /* the block of its chain; -1 for none yet */
} Link;

typedef struct {
    PyObject *referrer;         /* borrowed */
    int next;                   /* of the same link, as place + 1; 0 for none */
} Edge;

typedef struct {                /* what a pass that climbs notes */
    PyTypeObject *types[1 << TYPE_BITS];        /* of the wanted objects; open addressing */
    Link links[1 << LINK_BITS];                 /* open addressing */
    Edge edges[MOST_EDGES];
    int edge_count;
    Link *climbed[MOST_EDGES];                  /* those that were reached */
    int climbed_count;
} Climb;

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
    PyObject *referrer;         /* the object being visited */
    int depth;
    Climb *climb;               /* NULL unless the pass climbs */
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

/* An object is at the start of its block, or after one or two headers of 16 bytes: the collector's, and that of
   attributes and weak references. */
static Block *
block_of(Search *search, uintptr_t address)
{
    if (!search->filter[filter_place(address)])
        return NULL;
    for (uintptr_t header = 0; header <= LARGEST_HEADER; header += 16) {
        Block key = {address - header, 0, 0, 0};
        Block *block = bsearch(&key, search->blocks, search->count, sizeof key, by_address);
        if (block != NULL && header < block->size)
            return block;
    }
    return NULL;
}

/* The block that stands for all blocks whose chains have met. */
static Py_ssize_t
chain_of(Search *search, Py_ssize_t block)
{
    while (search->blocks[block].chain != block)
        block = search->blocks[block].chain = search->blocks[search->blocks[block].chain].chain;
    return block;
}

static void
join(Search *search, Py_ssize_t one, Py_ssize_t other)
{
    search->blocks[chain_of(search, one)].chain = chain_of(search, other);
}

static uint32_t
hash_pointer(const void *pointer, int bits)
{
    return (uint32_t)(((uint64_t)((uintptr_t)pointer >> 4) * 0x9E3779B97F4A7C15ull) >> (64 - bits));
}

/* The place of a type among the wanted ones'; a free one if it is none. */
static PyTypeObject **
type_at(Climb *climb, PyTypeObject *type)
{
    uint32_t place = hash_pointer(type, TYPE_BITS);
    while (climb->types[place] != NULL && climb->types[place] != type)
        place = (place + 1) & ((1u << TYPE_BITS) - 1);
    return &climb->types[place];
}

/* The place of an object among the links; a free one if it is none. */
static Link *
link_at(Climb *climb, const PyObject *object)
{
    uint32_t place = hash_pointer(object, LINK_BITS);
    while (climb->links[place].object != NULL && climb->links[place].object != object)
        place = (place + 1) & ((1u << LINK_BITS) - 1);
    return &climb->links[place];
}

/* Note a reference to an object that may be a link. */
static void
note_edge(Climb *climb, PyObject *referent, PyObject *referrer)
{
    PyTypeObject *type = Py_TYPE(referent);
    if (climb->edge_count == MOST_EDGES || referrer == referent || *type_at(climb, type) == NULL)
        return;
    if (type == &PyTuple_Type && Py_TYPE(referrer) != type)
        return;                             /* too many; what else refers to the end of a chain finds the next pass */
    Link *link = link_at(climb, referent);
    if (link->object == NULL)
        *link = (Link){referent, 0, -1};
    climb->edges[climb->edge_count] = (Edge){referrer, link->edge};
    link->edge = ++climb->edge_count;
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

/*
 * Look for wanted blocks in the words of an object's struct: memory that it holds without telling the collector, as
 * arrays, ctypes and other extension types do. A block that something was seen to refer to is left out.
 */
static void
scan(Search *search, PyObject *object, PyObject *referrer)
{
    Py_ssize_t size = Py_TYPE(object)->tp_basicsize;
    for (Py_ssize_t at = sizeof(PyObject); at + (Py_ssize_t)sizeof(uintptr_t) <= size && at < LARGEST_STRUCT;
         at += sizeof(uintptr_t)) {
        uintptr_t word;
        memcpy(&word, (char *)object + at, sizeof word);
        if (word % 16 || word < 4096 || !search->filter[filter_place(word)])
            continue;
        Block key = {word, 0, 0, 0};
        Block *block = bsearch(&key, search->blocks, search->count, sizeof key, by_address);
        if (block != NULL && block->found == 0)
            add(search, block, object, referrer);
    }
}

/* Whether an object is of a type that often occurs and holds nothing in secret. A small set has the hashes of its entries
   in its struct: that of a number may be an address, as in our own sets of addresses. */
static int
is_common(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyBytes_Type || type == &PyFloat_Type ||
           type == &PyDict_Type || type == &PyTuple_Type || type == &PyList_Type || type == &PyFunction_Type ||
           type == &PyCell_Type || type == &PyCode_Type || type == &PyFrame_Type || type == &PySet_Type ||
           type == &PyFrozenSet_Type || PyType_Check(object);
}

static int
visit(PyObject *referent, void *argument)
{
    Search *search = argument;
    add(search, block_of(search, (uintptr_t)referent), referent, search->referrer);
    if (search->climb != NULL)
        note_edge(search->climb, referent, search->referrer);
    if (PyByteArray_CheckExact(referent))
        add(search, block_of(search, buffer_of(referent)), referent, search->referrer);
    else if (!is_common(referent) && !PyObject_IS_GC(referent))
        scan(search, referent, search->referrer);
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
    if (PyDict_Check(object)) {             /* dicts whose keys are all texts leave them out when they are traversed */
        PyObject *key;
        Py_ssize_t at = 0;
        while (PyDict_Next(object, &at, &key, NULL))
            if (PyUnicode_CheckExact(key))
                add(search, block_of(search, (uintptr_t)key), key, object);
    }
    if (Py_TYPE(object)->tp_traverse != NULL)
        Py_TYPE(object)->tp_traverse(object, visit, search);
    if (!is_common(object))
        scan(search, object, Py_None);
    return 1;
}

/* Every object that the collector tracks, those that gc.freeze() has set aside too; the oldest first. */
static void
enter_all(Search *search)
{
#if VISITS_ALL
    PyUnstable_GC_VisitObjects(enter, search);
#else
    struct _gc_runtime_state *state = &PyInterpreterState_Get()->gc;
    for (int number = NUM_GENERATIONS; number >= 0; number--) {
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
        search->blocks[i] = (Block){(uintptr_t)address, size > 0 ? (size_t)size : 1, 0, 0};
        for (uintptr_t header = 0; header <= LARGEST_HEADER; header += 16)
            search->filter[filter_place((uintptr_t)address + header)] = 1;
    }
    qsort(search->blocks, search->count, sizeof(Block), by_address);
    for (Py_ssize_t i = 0; i < search->count; i++)
        search->blocks[i].chain = i;
    return 0;
}

/* What was found of one block counts for all whose chains have met. */
static int
share_out(Search *search)
{
    Py_ssize_t *next = calloc(2 * search->count + 2, sizeof *next), *first = next + search->count + 1;
    if (next == NULL)
        return -1;
    for (Py_ssize_t i = 0; i < search->count; i++) {    /* lists of the blocks of a chain, as place + 1 */
        next[i] = first[chain_of(search, i)];
        first[chain_of(search, i)] = i + 1;
    }
    Py_ssize_t found = search->found;
    for (Py_ssize_t at = 0; at < found; at++) {
        Match match = search->matches[at];
        for (Py_ssize_t i = first[chain_of(search, match.block)]; i; i = next[i - 1])
            if (i - 1 != match.block)
                add(search, &search->blocks[i - 1], match.referent, match.referrer);
    }
    free(next);
    return 0;
}

/* A list, dict or set in another one, or a class in a class, is a level of its own, with a name. */
static int
makes_chains(PyTypeObject *type)
{
    return type != &PyList_Type && type != &PyDict_Type && type != &PySet_Type && type != &PyFrozenSet_Type &&
           type != &PyCell_Type && type != &PyFunction_Type &&
           !PyType_IsSubtype(type, &PyType_Type) && !PyType_IsSubtype(type, &PyModule_Type);
}

/* Before the pass: the types of the wanted objects, each of which is alive and begins at its block's address. */
static int
begin_climb(Search *search)
{
    search->climb = calloc(1, sizeof(Climb));
    if (search->climb == NULL)
        return -1;
    for (Py_ssize_t i = 0; i < search->count && i < 1 << (TYPE_BITS - 1); i++) {
        PyTypeObject *type = Py_TYPE((PyObject *)search->blocks[i].address);
        if (makes_chains(type))
            *type_at(search->climb, type) = type;
    }
    return 0;
}

/* A link was reached on the way up from a block. */
static void
reach(Search *search, Py_ssize_t block, PyObject *object)
{
    Climb *climb = search->climb;
    Link *link = link_at(climb, object);
    if (link->object == NULL) {             /* nothing refers to it: the end of the chain */
        add(search, &search->blocks[block], object, Py_None);
        return;
    }
    if (link->block >= 0) {
        join(search, block, link->block);
        return;
    }
    link->block = block;
    climb->climbed[climb->climbed_count++] = link;
}

/* After the pass: go up from link to link, and note what else refers to each. */
static int
climb_up(Search *search)
{
    Climb *climb = search->climb;
    for (Py_ssize_t i = 0; i < search->count; i++)
        if (link_at(climb, (PyObject *)search->blocks[i].address)->object != NULL)
            reach(search, i, (PyObject *)search->blocks[i].address);
    for (int at = 0; at < climb->climbed_count; at++) {
        Link *link = climb->climbed[at];
        Block *block = &search->blocks[link->block];
        for (int edge = link->edge; edge; edge = climb->edges[edge - 1].next) {
            PyObject *referrer = climb->edges[edge - 1].referrer;
            if (Py_TYPE(referrer) == Py_TYPE(link->object))
                reach(search, link->block, referrer);
            else if ((uintptr_t)link->object != block->address)     /* those of the block itself are known */
                add(search, block, link->object, referrer);
        }
    }
    return share_out(search);
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
    int most, climb = 0;
    if (!PyArg_ParseTuple(args, "O!i|p", &PyList_Type, &given, &most, &climb))
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
        if (climb && begin_climb(search) < 0)
            PyErr_NoMemory();
        else {
            enter_all(search);
            if (climb && climb_up(search) < 0)
                PyErr_NoMemory();
            else
                result = results(search);
        }
    }
    free(search->climb);
    free(search->blocks);
    free(search->matches);
    free(search);
    Py_DECREF(blocks);
    return result;
}

PyDoc_STRVAR(referrers_doc, "referrers([(address, size), ...], most, climb=False) -> [(address, referent, referrer), ...]\n\n"
                            "The referrers of objects in the blocks, at most so many of each block. The "
                            "referrer is None where a list, dict or set keeps its entries in the block. With `climb`, "
                            "blocks are addresses of objects that are alive, and the referent may be an object of the same "
                            "type that a chain leads to; the referrer is None where the chain ends.");

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
    .m_doc = "Finds the referrers of objects in given blocks of memory.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__referrers(void)
{
    return PyModuleDef_Init(&definition);
}
