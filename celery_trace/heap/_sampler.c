/*
 * A fair sample of the live heap: which allocations are still alive, where they were made and for which task.
 *
 * Hooks on CPython's allocators (PyMem_SetAllocator, as tracemalloc does) count bytes. A countdown, drawn from an
 * exponential distribution, picks about one allocation in `mean` bytes: Poisson sampling, as in tcmalloc's, jemalloc's
 * and Go's heap profilers. A pick keeps its address, size, stack, tag and time until the block is freed. Each stands
 * for size / (1 - exp(-size / mean)) bytes. When the table of picks is full, the stacks that have the most of them are
 * thinned out first, each by halves, so that what is kept at a low rate stays visible next to what is kept at a high
 * one; a pick then stands for 2, 4, 8 ... times as much.
 *
 * Rules that keep this safe inside the user's process:
 *   - No hook runs Python code, allocates from Python's allocators, collects, or drops a reference to an object.
 *   - The fast path of nearly every call takes no lock: it counts down, or looks into a filter. Picks, their index and their
 *     stacks change under `lock`, which is a leaf: nothing that can wait for the GIL or for another lock happens
 *     under it. So the domains MEM and OBJ, called with the GIL of some interpreter, and RAW, called without, share
 *     one table.
 *   - A reference to a code object is taken under the GIL of the main interpreter, when a stack is first seen, and
 *     given back in sweep() and clear(), which are called from Python.
 *   - Hooks that cannot be taken out, because another tool's hooks are on top, stay and take no picks.
 *   - A forked child starts with the hooks off.
 *
 * Not for free-threaded builds. Only the main interpreter's allocations are picked.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
#error "The heap sampler relies on the GIL"
#endif
#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x03100000
#error "The heap sampler knows the frames of CPython 3.11 to 3.15"
#endif

#define Py_BUILD_CORE 1
#if PY_VERSION_HEX >= 0x030E0000
#include <internal/pycore_interpframe.h>
#else
#include <internal/pycore_frame.h>
#endif
#undef Py_BUILD_CORE

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST_PICKS 8192         /* live picks; beyond, the sample is thinned out */
#define ENOUGH_PICKS 48         /* a stack that has fewer is not thinned out by itself */
#define MOST_HALVINGS 30
#define INDEX_BITS 14           /* two places a pick */
#define FILTER_BITS 16
#define MOST_STACKS 8192
#define STACK_INDEX_BITS 14
#define MOST_FRAMES 40          /* innermost frames of a stack that are kept */
#define MOST_WALKED 200         /* frames that are searched for a marked function */
#define MOST_MARKED_FRAMES 16   /* innermost frames whose local variables are compared */
#define MOST_TAGS 4096
#define MARK_BITS 10
#define MOST_MARKS (1 << MARK_BITS)     /* places for marked functions, half of which are used */
#define MOST_PARTS 64           /* picks of one block */
#define MUCH_LARGER 8           /* a block of so many times the mean has at least one pick, but for 1 in 3,000 */
#define PEAK_BUCKETS 128        /* of what runs held at most: four an octave, from 1 KiB on */
#define LARGE 512               /* pymalloc hands larger requests on to the RAW domain */
#define OUTSIDE_HALVINGS 3      /* between the runs of a thread 1 in 2^3 picks is taken ... */
#define OUTSIDE_MEAN 65536.0    /* ... unless that is fewer than one in so many bytes */
#define MOST_BOUNDARIES 8
#define TIMED_PICKS 16          /* the time of one in so many is measured */
#define NEVER (INT64_MAX / 2)   /* the countdown while the sampler is off */

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define RELAXED __ATOMIC_RELAXED

enum { UNTAGGED = 0, IGNORED = 0xFFFFFFFFu };
enum { DOMAIN_RAW, DOMAIN_MEM, DOMAIN_OBJ, DOMAINS };

typedef struct {
    PyCodeObject *code;
    int32_t lasti;              /* bytes */
} Frame;

typedef struct Stack {
    uint64_t hash;
    struct Stack *next;         /* of those that are being dropped */
    int32_t number;             /* its place in `stacks` */
    uint32_t live;              /* picks that have this stack */
    uint32_t small;             /* those of them that are thinned out with it */
    uint32_t halvings;          /* how often that was done: 1 in 2^halvings stays */
    uint32_t halved;            /* whether it is being done now */
    uint32_t depth;
    Frame frames[];             /* innermost first */
} Stack;

typedef struct {
    uintptr_t address;          /* 0 where the place is free */
    size_t size;                /* what was counted when this was picked: the block, or what it had grown by */
    size_t whole;               /* the block's size; the same for all picks of a block */
    uint64_t serial;            /* rises with each pick */
    int64_t born_ns;            /* CLOCK_MONOTONIC */
    Stack *stack;               /* NULL for none */
    uint32_t tag;
    uint32_t run;               /* runs of the tag that had begun */
    uint32_t collections;       /* full collections that had ended */
    uint8_t resized;            /* whether the block grew or shrank to this, and was not made for it */
    uint8_t halvings;           /* 1 in 2^halvings of its kind is taken: of those between runs */
    int32_t next_unused;        /* while the place is free; -1 ends the list */
} Pick;

/* Counts of the calls: of MEM and OBJ under the GIL, of RAW with atomic operations. Subinterpreters with a GIL of
   their own share the first, so that the main one's counts may be off by a few while they allocate. */
typedef struct {
    int64_t countdown;          /* bytes until the next pick */
    uint64_t calls;
} __attribute__((aligned(64))) Counts;

static Counts under_gil = {NEVER, 0}, raw = {NEVER, 0};
static const PyMemAllocatorEx *original[DOMAINS];
static int on;                  /* whether picks are taken */

/* Whether picks have these bits of their address: a bit each, so that the table stays in the processor's caches. Read
   without the lock: that a block is a pick is known to whoever frees it, as it was noted before its address was handed
   out. */
static uint64_t filter[1 << (FILTER_BITS - 6)];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Under `lock`, from here ... */
static double mean;             /* bytes a pick */
static size_t large;            /* blocks from this size on are not thinned out by stack */
static uint64_t random_state = 1;
static int32_t unused = -1;     /* head of the list of free places */
static int32_t used;            /* places of `picks` that were ever used since the last reset */
static int32_t live;
static uint8_t sharing[1 << FILTER_BITS];           /* how many picks share a bit of the filter; sticks at 255 */
static Pick picks[MOST_PICKS];
static uint16_t pick_index[1 << INDEX_BITS];        /* open addressing: place + 1, or 0 */
static Stack *stacks[MOST_STACKS];
static uint16_t stack_index[1 << STACK_INDEX_BITS]; /* open addressing: number + 1, or 0 */
static int32_t stack_count;
static uint64_t serial, taken, died, dropped, thinned;
static int64_t pick_ns;         /* time spent in taking picks */
/* ... to here. */

/* Written under the main interpreter's GIL. */
static PyInterpreterState *interpreter;
static uint32_t runs_of[MOST_TAGS];
static struct { PyCodeObject *code; uint32_t tag; } marks[MOST_MARKS];
static int mark_count;
static PyCodeObject *boundaries[MOST_BOUNDARIES];   /* around every run or loop: frames outside are left out */
static int boundary_count;
static uint32_t collections;

/*
 * What the latest run of each tag holds of what it allocated itself, and has held at most (bytes, by picks). It is
 * meaningful where one run of a tag is in progress at a time. Changed by picks under `lock`, begun and ended under the
 * main interpreter's GIL without: a figure may then be off by the pick of another thread, and is only read for a
 * statistic.
 */
static struct Held { int64_t now, most; uint32_t stretch; } held_by[MOST_TAGS];
static uint32_t *peaks_of[MOST_TAGS];   /* PEAK_BUCKETS counts of runs, once one has ended */
static uint32_t stretch;                /* rises with each start of the sampler; 0 is none */

/* Of this thread; gone with it. */
static _Thread_local struct {
    uint32_t tag;
    uint32_t runs;              /* that have begun in it */
    uint32_t nested;            /* calls of MEM and OBJ that this thread is in, and whose calls of RAW don't count */
    uint32_t seen[DOMAINS];     /* large calls that came by our hooks */
    int forking;                /* this thread forks, and has the lock */
} mine;

/* --- small things ------------------------------------------------------------------------------------ */

static int64_t
now_ns(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static double
uniform(void)                               /* in (0, 1] */
{
    uint64_t x = random_state;              /* xorshift64, Marsaglia 2003 */
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    random_state = x;
    return ((x >> 11) + 1) * (1.0 / 9007199254740992.0);
}

/* Bytes that may pass: an allocation of `size` is picked if they are fewer, with a chance of 1 - exp(-size / mean). */
static int64_t
next_countdown(void)
{
    return (int64_t)(-log(uniform()) * mean);
}

static double
chance(size_t size)                         /* that an allocation of this size is picked */
{
    return -expm1(-(double)size / mean);
}

/* Whether a pick is thinned out with its stack. Not those of large blocks: resize_picked() relies on their having one. */
static int
is_small(const Pick *pick)
{
    return pick->stack != NULL && pick->whole < large;
}

/* Bytes of the heap that a pick stands for. */
static double
weight_of(const Pick *pick)
{
    return ldexp(pick->size / chance(pick->size), pick->halvings + (is_small(pick) ? (int)pick->stack->halvings : 0));
}

static inline uint32_t
hash_address(const void *address, int bits) /* Fibonacci hashing; blocks are aligned to 16 bytes */
{
    return (uint32_t)(((uint64_t)((uintptr_t)address >> 4) * 0x9E3779B97F4A7C15ull) >> (64 - bits));
}

static inline uint32_t
filter_place(const void *address)           /* neighbours stay neighbours, for the processor's caches; coarser
                                               places cost more, as hot blocks then share one with a pick */
{
    uintptr_t x = (uintptr_t)address >> 4;
    return (uint32_t)((x ^ (x >> FILTER_BITS)) & ((1u << FILTER_BITS) - 1));
}

static inline int
may_be_picked(const void *block)
{
    uint32_t place = filter_place(block);
    return UNLIKELY(__atomic_load_n(&filter[place / 64], RELAXED) >> (place % 64) & 1);
}

/* The state of this thread, which holds the GIL. */
static PyThreadState *
state_under_gil(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

/* The state of this thread if it holds the GIL, else NULL. */
static PyThreadState *
state_if_any(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return state_under_gil();               /* kept by thread since 3.12 */
#else
    /* On 3.11 it is the state of whichever thread holds the GIL; only its address may be looked at. */
    PyThreadState *own = PyGILState_GetThisThreadState();
    return own != NULL && own == _PyThreadState_UncheckedGet() ? own : NULL;
#endif
}

/* --- stacks ------------------------------------------------------------------------------------------ */

static _PyInterpreterFrame *
innermost(PyThreadState *state)
{
#if PY_VERSION_HEX >= 0x030D0000
    return state->current_frame;
#else
    return state->cframe != NULL ? state->cframe->current_frame : NULL;
#endif
}

/* A borrowed reference: the frame holds the code for as long as we look at it. */
static PyCodeObject *
code_of(_PyInterpreterFrame *frame)
{
#if PY_VERSION_HEX >= 0x030D0000
    return _PyFrame_GetCode(frame);
#else
    return frame->f_code;
#endif
}

static int32_t
lasti_of(_PyInterpreterFrame *frame)
{
    return (int32_t)(_PyInterpreterFrame_LASTI(frame) * sizeof(_Py_CODEUNIT));
}

static int
is_boundary(const PyCodeObject *code)
{
    for (int i = 0; i < boundary_count; i++)
        if (boundaries[i] == code)
            return 1;
    return 0;
}

/* Whether this thread of a pool's process runs tasks, and none now. */
static int
is_between_runs(uint32_t tag)
{
    return tag == UNTAGGED && mine.runs && boundary_count;
}

static uint32_t
tag_of_code(PyCodeObject *code)
{
    uint32_t place = hash_address(code, MARK_BITS);
    for (; marks[place].code != NULL; place = (place + 1) % MOST_MARKS)
        if (marks[place].code == code)
            return marks[place].tag;
    return UNTAGGED;
}

/*
 * The frames of this thread, innermost first. Sets `tag` to that of the outermost marked function if it is UNTAGGED
 * on entry.
 */
static uint32_t
walk(PyThreadState *state, Frame frames[MOST_FRAMES], uint32_t *tag)
{
    uint32_t depth = 0;
    int search = *tag == UNTAGGED && mark_count > 0 && !is_between_runs(*tag), walked = 0;
    for (_PyInterpreterFrame *frame = innermost(state); frame != NULL && walked < MOST_WALKED; frame = frame->previous) {
        if (_PyFrame_IsIncomplete(frame))
            continue;
        PyCodeObject *code = code_of(frame);
        /* None of the versions is known to run anything above a frame whose code is being freed. If one does, a
           reference that is taken now would free the code once more. */
        if (Py_REFCNT(code) <= 0)
            continue;
        walked++;
        if (depth < MOST_FRAMES) {
            frames[depth].code = code;
            frames[depth].lasti = lasti_of(frame);
            depth++;
        }
        else if (!search)
            break;
        if (is_boundary(code) && !search)
            break;
        if (search) {
            uint32_t found = tag_of_code(code);
            if (found != UNTAGGED)
                *tag = found;
        }
    }
    return depth;
}

static uint64_t
hash_of(const Frame *frames, uint32_t depth)    /* FNV-1a over words */
{
    uint64_t hash = 14695981039346656037ull ^ depth;
    for (uint32_t i = 0; i < depth; i++)
        hash = (hash ^ (uintptr_t)frames[i].code ^ (uint64_t)(uint32_t)frames[i].lasti << 48) * 1099511628211ull;
    return hash ^ (hash >> 32);
}

static int
same_frames(const Stack *stack, const Frame *frames, uint32_t depth)
{
    if (stack->depth != depth)
        return 0;
    for (uint32_t i = 0; i < depth; i++)
        if (stack->frames[i].code != frames[i].code || stack->frames[i].lasti != frames[i].lasti)
            return 0;
    return 1;
}

static void
enter_stack(Stack *stack, int32_t number)
{
    uint32_t mask = (1u << STACK_INDEX_BITS) - 1, place = stack->hash & mask;
    while (stack_index[place])
        place = (place + 1) & mask;
    stack_index[place] = (uint16_t)(number + 1);
    stacks[number] = stack;
    stack->number = number;
}

/* The stack with these frames, noted if it is new; NULL when there is no room. Needs the main interpreter's GIL. */
static Stack *
intern(const Frame *frames, uint32_t depth)
{
    uint64_t hash = hash_of(frames, depth);
    uint32_t mask = (1u << STACK_INDEX_BITS) - 1;
    for (uint32_t place = hash & mask; stack_index[place]; place = (place + 1) & mask) {
        Stack *known = stacks[stack_index[place] - 1];
        if (known->hash == hash && same_frames(known, frames, depth))
            return known;
    }
    if (stack_count == MOST_STACKS)
        return NULL;
    Stack *stack = malloc(sizeof(Stack) + depth * sizeof(Frame));
    if (stack == NULL)
        return NULL;
    stack->hash = hash;
    stack->live = stack->small = stack->halvings = 0;
    stack->depth = depth;
    memcpy(stack->frames, frames, depth * sizeof(Frame));
    for (uint32_t i = 0; i < depth; i++)
        Py_INCREF(frames[i].code);
    enter_stack(stack, stack_count++);
    return stack;
}

/* Give back the references of stacks that are no longer known. Needs the GIL, and must not have the lock: dropping a
   code object can run Python code. */
static void
drop_stacks(Stack *stack)
{
    while (stack != NULL) {
        Stack *next = stack->next;
        for (uint32_t i = 0; i < stack->depth; i++)
            Py_DECREF(stack->frames[i].code);
        free(stack);
        stack = next;
    }
}

/* --- what a run holds at most ---------------------------------------------------------------------------- */

/* The account of the run in progress that a pick belongs to, or NULL. */
static inline struct Held *
account_of(const Pick *pick)
{
    return pick->tag != UNTAGGED && pick->tag < MOST_TAGS && pick->run == runs_of[pick->tag] ? &held_by[pick->tag]
                                                                                             : NULL;
}

/* A pick comes (1) or goes (-1). */
static void
weigh(const Pick *pick, int sign)
{
    struct Held *held = account_of(pick);
    if (held == NULL)
        return;
    int64_t now = __atomic_load_n(&held->now, RELAXED) + sign * (int64_t)weight_of(pick);
    __atomic_store_n(&held->now, now > 0 ? now : 0, RELAXED);
    if (now > __atomic_load_n(&held->most, RELAXED))
        __atomic_store_n(&held->most, now, RELAXED);
}

/* Picks stand for more than they did: what the runs in progress hold is added up again. */
static void
weigh_anew(void)
{
    for (int pass = 0; pass < 2; pass++)
        for (int32_t i = 0; i < used; i++) {
            struct Held *held = picks[i].address ? account_of(&picks[i]) : NULL;
            if (held != NULL && pass == 0)
                __atomic_store_n(&held->now, 0, RELAXED);
            else if (held != NULL)
                weigh(&picks[i], 1);
        }
}

static inline void
begin_account(uint32_t tag)
{
    __atomic_store_n(&held_by[tag].now, 0, RELAXED);
    __atomic_store_n(&held_by[tag].most, 0, RELAXED);
    held_by[tag].stretch = on ? stretch : 0;
}

/* Bucket i > 0 holds peaks up to 1 KiB * 2^(i / 4), and 0 those of runs without a pick. */
static int
peak_bucket(int64_t bytes)
{
    if (bytes <= 0)
        return 0;
    int octave;
    double part = frexp((double)bytes, &octave);            /* in [0.5, 1) */
    int bucket = 4 * (octave - 11) + (part > 0.5) + (part > 0.594604) + (part > 0.707107) + (part > 0.840897);
    return bucket < 1 ? 1 : bucket < PEAK_BUCKETS ? bucket : PEAK_BUCKETS - 1;
}

/* A run has ended: count it, if the sampler was on all the time. */
static inline void
end_account(uint32_t tag)
{
    if (tag == UNTAGGED || tag >= MOST_TAGS || !on || held_by[tag].stretch != stretch)
        return;
    held_by[tag].stretch = 0;
    if (UNLIKELY(peaks_of[tag] == NULL) && (peaks_of[tag] = calloc(PEAK_BUCKETS, sizeof(uint32_t))) == NULL)
        return;
    peaks_of[tag][peak_bucket(__atomic_load_n(&held_by[tag].most, RELAXED))]++;
}

/* --- the table of picks, under the lock --------------------------------------------------------------- */

static int32_t
new_place(void)                             /* -1 when there is none */
{
    int32_t at = unused;
    if (at >= 0)
        unused = picks[at].next_unused;
    else if (used < MOST_PICKS)
        at = used++;
    return at;
}

static void
enter(int32_t at)
{
    uint32_t mask = (1u << INDEX_BITS) - 1, place = hash_address((void *)picks[at].address, INDEX_BITS);
    while (pick_index[place])
        place = (place + 1) & mask;
    pick_index[place] = (uint16_t)(at + 1);
    uint32_t bit = filter_place((void *)picks[at].address);
    if (sharing[bit] < 255 && sharing[bit]++ == 0)
        __atomic_store_n(&filter[bit / 64], filter[bit / 64] | 1ull << bit % 64, RELAXED);
    if (picks[at].stack != NULL)
        picks[at].stack->live++;
    if (is_small(&picks[at]))
        picks[at].stack->small++;
    live++;
    weigh(&picks[at], 1);
}

/* Take the pick at a place of the index out, and give its place in `picks` back. */
static void
leave(uint32_t place)                       /* backward shift deletion, Knuth 6.4 R */
{
    uint32_t mask = (1u << INDEX_BITS) - 1;
    int32_t at = pick_index[place] - 1;
    for (uint32_t next = (place + 1) & mask; pick_index[next]; next = (next + 1) & mask) {
        uint32_t wanted = hash_address((void *)picks[pick_index[next] - 1].address, INDEX_BITS);
        if (((next - wanted) & mask) >= ((next - place) & mask)) {
            pick_index[place] = pick_index[next];
            place = next;
        }
    }
    pick_index[place] = 0;
    uint32_t bit = filter_place((void *)picks[at].address);
    if (sharing[bit] < 255 && --sharing[bit] == 0)
        __atomic_store_n(&filter[bit / 64], filter[bit / 64] & ~(1ull << bit % 64), RELAXED);
    if (picks[at].stack != NULL)
        picks[at].stack->live--;
    if (is_small(&picks[at]))
        picks[at].stack->small--;
    weigh(&picks[at], -1);
    picks[at].address = 0;
    picks[at].next_unused = unused;
    unused = at;
    live--;
}

/* Take out all picks of a block; the first `most` of them are copied to `held`. Returns how many there were. */
static int
take_out(const void *block, Pick *held, int most)
{
    uint32_t mask = (1u << INDEX_BITS) - 1, place = hash_address(block, INDEX_BITS);
    int number = 0;
    while (pick_index[place]) {
        const Pick *pick = &picks[pick_index[place] - 1];
        if (pick->address != (uintptr_t)block) {
            place = (place + 1) & mask;
            continue;
        }
        if (number < most)
            held[number] = *pick;
        number++;
        leave(place);                       /* the next of the chain may have moved here: look again */
    }
    return number;
}

/* Take out one pick, of which its block may have several. */
static void
thin(int32_t at)
{
    uint32_t mask = (1u << INDEX_BITS) - 1, place = hash_address((void *)picks[at].address, INDEX_BITS);
    while (pick_index[place] != at + 1)
        place = (place + 1) & mask;
    leave(place);
    thinned++;
}

/* Halve the picks of the stacks that have the most. False if none has many. */
static int
thin_stacks(void)
{
    uint32_t most = 0;
    for (int32_t i = 0; i < stack_count; i++)
        if (stacks[i]->small > most && stacks[i]->halvings < MOST_HALVINGS)
            most = stacks[i]->small;
    if (most < ENOUGH_PICKS)
        return 0;
    for (int32_t i = 0; i < stack_count; i++) {
        stacks[i]->halved = stacks[i]->small > most / 2 && stacks[i]->halvings < MOST_HALVINGS;
        stacks[i]->halvings += stacks[i]->halved;
    }
    for (int32_t i = 0; i < used; i++)
        if (picks[i].address && is_small(&picks[i]) && picks[i].stack->halved && uniform() > 0.5)
            thin(i);
    return 1;
}

/*
 * Halve the rate of all: each pick stays with the chance that it would have been taken at the new one. What is left of
 * a countdown is exponentially distributed as a whole one is, so twice of it is what the new mean asks for.
 */
static void
thin_all(void)
{
    double old_mean = mean;
    for (int32_t i = 0; i < used; i++) {
        if (!picks[i].address)
            continue;
        mean = old_mean;
        double before = chance(picks[i].size);
        mean = old_mean * 2;
        if (uniform() * before > chance(picks[i].size))
            thin(i);
    }
    mean = old_mean * 2;
    int64_t left = __atomic_load_n(&under_gil.countdown, RELAXED);
    if (left > 0)
        __atomic_store_n(&under_gil.countdown, left * 2, RELAXED);
    left = __atomic_load_n(&raw.countdown, RELAXED);
    if (left > 0)
        __atomic_store_n(&raw.countdown, left * 2, RELAXED);
}

/* See that there is a place for the next pick. */
static void
make_room(void)
{
    int full = live == MOST_PICKS;
    while (live == MOST_PICKS)
        if (!thin_stacks())
            thin_all();
    if (full)
        weigh_anew();
}

/* How many halvings a pick between runs has: what the pool does there is most of what such a process allocates, and the
   least likely to leak. */
static int
halvings_outside(size_t whole)
{
    int halvings = 0;
    if (whole < large)
        while (halvings < OUTSIDE_HALVINGS && ldexp(mean, halvings + 1) <= OUTSIDE_MEAN)
            halvings++;
    return halvings;
}

/* Take a pick. `state` is this thread's if it holds the main interpreter's GIL, else NULL. */
static void
take_pick(PyThreadState *state, const void *block, size_t size, size_t whole, int resized)
{
    uint32_t tag = mine.tag, depth = 0;
    Frame frames[MOST_FRAMES];
    if (tag == IGNORED)
        return;
    int halvings = is_between_runs(tag) ? halvings_outside(whole) : 0;
    if (halvings && uniform() > ldexp(1.0, -halvings)) {
        thinned++;
        return;
    }
    if (state != NULL)
        depth = walk(state, frames, &tag);
    Stack *stack = depth ? intern(frames, depth) : NULL;
    if (stack != NULL && stack->small == 0)
        stack->halvings = 0;                /* none stands for more than itself, so all are taken again */
    if (stack != NULL && stack->halvings && whole < large && uniform() > ldexp(1.0, -(int)stack->halvings)) {
        thinned++;
        return;
    }
    int32_t at = depth && stack == NULL ? -1 : new_place();
    if (at < 0) {
        dropped++;
        return;
    }
    picks[at] = (Pick){
        .address = (uintptr_t)block, .size = size, .whole = whole, .serial = ++serial, .born_ns = now_ns(),
        .stack = stack, .tag = tag, .run = tag < MOST_TAGS ? runs_of[tag] : 0, .collections = collections,
        .resized = (uint8_t)resized, .halvings = (uint8_t)halvings,
    };
    enter(at);
    taken++;
    make_room();
}

/* The same, and measure what it costs: of some, as reading the clock costs too. */
static void
take(PyThreadState *state, const void *block, size_t size, size_t whole, int resized)
{
    static uint32_t number;
    if (number++ % TIMED_PICKS) {
        take_pick(state, block, size, whole, resized);
        return;
    }
    int64_t started_ns = now_ns();
    take_pick(state, block, size, whole, resized);
    pick_ns += TIMED_PICKS * (now_ns() - started_ns);
}

/* --- hooks ------------------------------------------------------------------------------------------- */

/* A countdown has run out: draw the next. False if the sampler is off. */
static int
draw(Counts *counts)
{
    pthread_mutex_lock(&lock);
    int drawn = on;
    __atomic_store_n(&counts->countdown, drawn ? next_countdown() : NEVER, RELAXED);
    pthread_mutex_unlock(&lock);
    return drawn;
}

static void
note(PyThreadState *state, const void *block, size_t size, size_t whole, int resized)
{
    pthread_mutex_lock(&lock);
    if (on)
        take(state, block, size, whole, resized);
    pthread_mutex_unlock(&lock);
}

static void __attribute__((noinline))
forget(const void *block)
{
    pthread_mutex_lock(&lock);
    died += take_out(block, NULL, 0);
    pthread_mutex_unlock(&lock);
}

/* Of MEM and OBJ. */
static void
note_under_gil(const void *block, size_t size, size_t whole, int resized)
{
    PyThreadState *state = state_under_gil();
    if (block != NULL && state != NULL && state->interp == interpreter)
        note(state, block, size, whole, resized);
}

/* An allocation that is picked, or may be handed on to RAW, whose hook must not count it again. */
static void * __attribute__((noinline))
allocate(int domain, size_t number, size_t each, int zeroed)
{
    const PyMemAllocatorEx *to = original[domain];
    int picked = under_gil.countdown < 0 && draw(&under_gil);
    mine.seen[domain]++;
    mine.nested++;
    void *block = zeroed ? to->calloc(to->ctx, number, each) : to->malloc(to->ctx, each);
    mine.nested--;
    if (picked)
        note_under_gil(block, number * each, number * each, 0);
    return block;
}

static inline void
count_resized(const void *resized, size_t counted, size_t size)
{
    under_gil.calls++;
    under_gil.countdown -= (int64_t)counted;
    if (UNLIKELY(under_gil.countdown < 0) && draw(&under_gil))
        note_under_gil(resized, counted, size, 1);
}

/*
 * A block that may have picks is resized. Where it is so much larger than the mean that it is sure to have a pick, its
 * picks keep their birth and only what it grows by counts as new: so a list that grows run by run has births spread
 * over those runs. Otherwise all of it counts as freed and allocated. Both leave the estimate unbiased, as which way is
 * taken does not depend on whether there is a pick. (A block of the first kind without a pick, 1 in 3,000, is counted
 * as new.)
 */
static void * __attribute__((noinline))
resize_picked(int domain, void *block, size_t size)
{
    const PyMemAllocatorEx *to = original[domain];
    Pick held[MOST_PARTS];                  /* their stacks can't go meanwhile: that takes the GIL, which we have */
    pthread_mutex_lock(&lock);
    int parts = take_out(block, held, MOST_PARTS);
    pthread_mutex_unlock(&lock);
    mine.nested++;
    void *resized = to->realloc(to->ctx, block, size);
    mine.nested--;
    size_t known = 0;
    pthread_mutex_lock(&lock);
    int keep = on && parts && (resized == NULL || (size >= held[0].whole && held[0].whole >= MUCH_LARGER * mean &&
                                                   parts < MOST_PARTS));
    for (int i = 0; i < parts; i++) {
        int32_t at = keep && i < MOST_PARTS ? new_place() : -1;
        if (at < 0) {                       /* or another thread's RAW has taken the last places meanwhile */
            died++;
            continue;
        }
        picks[at] = held[i];
        picks[at].address = (uintptr_t)(resized != NULL ? resized : block);
        if (resized != NULL) {
            picks[at].whole = size;
            known = held[i].whole;
        }
        enter(at);
    }
    make_room();
    pthread_mutex_unlock(&lock);
    if (resized != NULL)
        count_resized(resized, size - known, size);
    return resized;
}

#define HOOKS(DOMAIN, name)                                                                                            \
    static void *name##_malloc(void *Py_UNUSED(ctx), size_t size)                                                      \
    {                                                                                                                  \
        under_gil.calls++;                                                                                             \
        under_gil.countdown -= (int64_t)size;                                                                          \
        if (UNLIKELY((under_gil.countdown < 0) | (size > LARGE)))                                                      \
            return allocate(DOMAIN, 1, size, 0);                                                                       \
        const PyMemAllocatorEx *to = original[DOMAIN];                                                                 \
        return to->malloc(to->ctx, size);                                                                              \
    }                                                                                                                  \
    static void *name##_calloc(void *Py_UNUSED(ctx), size_t number, size_t each)                                       \
    {                                                                                                                  \
        under_gil.calls++;                                                                                             \
        under_gil.countdown -= (int64_t)(number * each);                                                               \
        if (UNLIKELY((under_gil.countdown < 0) | (number * each > LARGE)))                                             \
            return allocate(DOMAIN, number, each, 1);                                                                  \
        const PyMemAllocatorEx *to = original[DOMAIN];                                                                 \
        return to->calloc(to->ctx, number, each);                                                                      \
    }                                                                                                                  \
    static void *name##_realloc(void *Py_UNUSED(ctx), void *block, size_t size)                                        \
    {                                                                                                                  \
        if (may_be_picked(block))                                                                                      \
            return resize_picked(DOMAIN, block, size);                                                                 \
        const PyMemAllocatorEx *to = original[DOMAIN];                                                                 \
        mine.nested++;                                                                                                 \
        void *resized = to->realloc(to->ctx, block, size);                                                             \
        mine.nested--;                                                                                                 \
        if (resized != NULL)                                                                                           \
            count_resized(resized, size, size);                                                                        \
        return resized;                                                                                                \
    }                                                                                                                  \
    static void name##_free(void *Py_UNUSED(ctx), void *block)                                                         \
    {                                                                                                                  \
        if (may_be_picked(block))                                                                                      \
            forget(block);                                                                                             \
        const PyMemAllocatorEx *to = original[DOMAIN];                                                                 \
        to->free(to->ctx, block);                                                                                      \
    }

HOOKS(DOMAIN_MEM, mem)
HOOKS(DOMAIN_OBJ, obj)

/* RAW is called with or without the GIL, by several threads at once. */

static const PyMemAllocatorEx *
raw_original(void)
{
    return __atomic_load_n(&original[DOMAIN_RAW], __ATOMIC_ACQUIRE);
}

static void
raw_count(const void *block, size_t size, int resized)
{
    if (mine.nested)
        return;
    mine.seen[DOMAIN_RAW]++;
    __atomic_fetch_add(&raw.calls, 1, RELAXED);
    int64_t left = __atomic_sub_fetch(&raw.countdown, (int64_t)size, RELAXED);
    /* Of several threads that find it below zero, the one that has crossed it. */
    if (LIKELY(left >= 0) || left + (int64_t)size < 0 || !draw(&raw) || block == NULL)
        return;
    PyThreadState *state = state_if_any();
    if (state == NULL || state->interp == interpreter)
        note(state, block, size, size, resized);
}

static void *
raw_malloc(void *Py_UNUSED(ctx), size_t size)
{
    const PyMemAllocatorEx *to = raw_original();
    void *block = to->malloc(to->ctx, size);
    raw_count(block, size, 0);
    return block;
}

static void *
raw_calloc(void *Py_UNUSED(ctx), size_t number, size_t each)
{
    const PyMemAllocatorEx *to = raw_original();
    void *block = to->calloc(to->ctx, number, each);
    raw_count(block, number * each, 0);
    return block;
}

static void *
raw_realloc(void *Py_UNUSED(ctx), void *block, size_t size)
{
    const PyMemAllocatorEx *to = raw_original();
    /* Before the call: afterwards another thread may have the address. One that fails loses us a pick. */
    if (may_be_picked(block))
        forget(block);
    void *resized = to->realloc(to->ctx, block, size);
    raw_count(resized, size, 1);
    return resized;
}

static void
raw_free(void *Py_UNUSED(ctx), void *block)
{
    const PyMemAllocatorEx *to = raw_original();
    if (may_be_picked(block))
        forget(block);
    to->free(to->ctx, block);
}

/* --- switching on and off ---------------------------------------------------------------------------- */

static const PyMemAllocatorDomain domain_of[DOMAINS] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
static const PyMemAllocatorEx hooks[DOMAINS] = {
    {NULL, raw_malloc, raw_calloc, raw_realloc, raw_free},
    {NULL, mem_malloc, mem_calloc, mem_realloc, mem_free},
    {NULL, obj_malloc, obj_calloc, obj_realloc, obj_free},
};

/* Whether an allocation comes by our hooks, on top or below those of another tool. Where none succeeds it may. */
static int
is_called(int domain)
{
    uint32_t before = mine.seen[domain];
    void *block = domain == DOMAIN_RAW   ? PyMem_RawMalloc(LARGE + 1)
                  : domain == DOMAIN_MEM ? PyMem_Malloc(LARGE + 1)
                                         : PyObject_Malloc(LARGE + 1);
    int called = block == NULL || mine.seen[domain] != before;
    if (domain == DOMAIN_RAW)
        PyMem_RawFree(block);
    else if (domain == DOMAIN_MEM)
        PyMem_Free(block);
    else
        PyObject_Free(block);
    return called;
}

static int
are_called(void)
{
    return is_called(DOMAIN_MEM) && is_called(DOMAIN_OBJ) && is_called(DOMAIN_RAW);
}

static int
install(void)
{
    for (int domain = 0; domain < DOMAINS; domain++) {
        if (is_called(domain))
            continue;
        PyMemAllocatorEx top;
        PyMem_GetAllocator(domain_of[domain], &top);
        const PyMemAllocatorEx *known = original[domain];
        if (known == NULL || known->ctx != top.ctx || known->malloc != top.malloc || known->calloc != top.calloc ||
            known->realloc != top.realloc || known->free != top.free) {
            /* One that another thread may be inside of is never freed, nor changed. */
            PyMemAllocatorEx *copy = malloc(sizeof *copy);
            if (copy == NULL)
                return -1;
            *copy = top;
            __atomic_store_n(&original[domain], copy, __ATOMIC_RELEASE);
        }
        PyMemAllocatorEx hook = hooks[domain];
        /* The same context: a thread in RAW may read the function of one allocator and the context of the other. */
        hook.ctx = top.ctx;
        PyMem_SetAllocator(domain_of[domain], &hook);
    }
    return 0;
}

/* Take no picks from now on. */
static void
switch_off(void)
{
    on = 0;
    under_gil.countdown = NEVER;
    __atomic_store_n(&raw.countdown, NEVER, RELAXED);
}

/* Switch off and forget all. */
static void
clear(void)
{
    Stack *gone = NULL;
    pthread_mutex_lock(&lock);
    switch_off();
    if (used) {
        memset(pick_index, 0, sizeof pick_index);
        memset(filter, 0, sizeof filter);
        memset(sharing, 0, sizeof sharing);
        for (int32_t i = 0; i < used; i++)
            picks[i].address = 0;
    }
    unused = -1;
    used = live = 0;
    if (stack_count)
        memset(stack_index, 0, sizeof stack_index);
    for (int32_t i = 0; i < stack_count; i++) {
        stacks[i]->next = gone;
        gone = stacks[i];
    }
    stack_count = 0;
    pthread_mutex_unlock(&lock);
    drop_stacks(gone);
}

/* The child gets a table that no thread is changing. The wait is bounded: a crash reporter may fork in a signal
   handler, above a hook of ours that has the lock. */
static void
before_fork(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    mine.forking = pthread_mutex_timedlock(&lock, &until) == 0;
}

static void
after_fork_in_parent(void)
{
    if (mine.forking) {
        mine.forking = 0;
        pthread_mutex_unlock(&lock);
    }
}

static void
after_fork_in_child(void)
{
    pthread_mutex_init(&lock, NULL);
    mine.forking = 0;
    switch_off();
    for (int tag = 0; tag < MOST_TAGS; tag++)
        if (peaks_of[tag] != NULL)          /* those runs were the parent's */
            memset(peaks_of[tag], 0, PEAK_BUCKETS * sizeof(uint32_t));
    mine.tag = UNTAGGED;
    mine.runs = 0;
}

/* At the end of the interpreter: what is referred to is gone with it. */
static void
at_exit(void)
{
    pthread_mutex_lock(&lock);
    switch_off();
    if (used) {
        memset(pick_index, 0, sizeof pick_index);
        memset(filter, 0, sizeof filter);
        memset(sharing, 0, sizeof sharing);
        memset(stack_index, 0, sizeof stack_index);
    }
    memset(marks, 0, sizeof marks);
    boundary_count = 0;
    unused = -1;
    used = live = mark_count = stack_count = 0;
    pthread_mutex_unlock(&lock);
}

static PyObject *
sampler_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    double wanted;
    unsigned long long seed = 0;
    if (!PyArg_ParseTuple(args, "d|K", &wanted, &seed))
        return NULL;
    if (!(wanted >= 64.0 && wanted <= 1e12)) {
        PyErr_SetString(PyExc_ValueError, "mean_bytes must be between 64 bytes and 1 TB");
        return NULL;
    }
    if (on && are_called())
        Py_RETURN_NONE;
    clear();                                /* after hooks were lost: what was freed since is not known */
    if (install() < 0)
        return PyErr_NoMemory();
    pthread_mutex_lock(&lock);
    random_state = (seed ? seed : (uint64_t)now_ns()) * 0x9E3779B97F4A7C15ull | 1;
    mean = wanted;
    large = (size_t)(MUCH_LARGER * wanted);
    stretch++;
    on = 1;
    under_gil.countdown = next_countdown();
    __atomic_store_n(&raw.countdown, next_countdown(), RELAXED);
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *
sampler_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    /* RAW stays: other threads may be inside of it, and calls are few. */
    for (int domain = DOMAIN_MEM; domain < DOMAINS; domain++) {
        PyMemAllocatorEx top;
        PyMem_GetAllocator(domain_of[domain], &top);
        if (top.malloc == hooks[domain].malloc)
            PyMem_SetAllocator(domain_of[domain], (PyMemAllocatorEx *)original[domain]);
    }
    clear();
    Py_RETURN_NONE;
}

static PyObject *
sampler_coarsen(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&lock);
    if (on) {
        thin_all();
        weigh_anew();
    }
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *
sampler_is_on(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(on && are_called());
}

/* --- which task runs ----------------------------------------------------------------------------------- */

static PyObject *
sampler_run(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long tag = PyLong_AsUnsignedLongMask(argument);
    if (tag == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    uint32_t before = mine.tag;
    mine.tag = (uint32_t)tag;
    if (mine.tag != UNTAGGED && mine.tag < MOST_TAGS) {
        mine.runs++;
        runs_of[mine.tag]++;
        begin_account(mine.tag);
    }
    return PyLong_FromUnsignedLong(before);
}

static PyObject *
sampler_restore(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long tag = PyLong_AsUnsignedLongMask(argument);
    if (tag == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    end_account(mine.tag);
    mine.tag = (uint32_t)tag;
    Py_RETURN_NONE;
}

static PyObject *
sampler_peaks(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long tag = PyLong_AsUnsignedLong(argument);
    if (tag == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    const uint32_t *counts = tag < MOST_TAGS ? peaks_of[tag] : NULL;
    return PyBytes_FromStringAndSize((const char *)counts, counts != NULL ? PEAK_BUCKETS * sizeof(uint32_t) : 0);
}

static PyObject *
sampler_runs(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long tag = PyLong_AsUnsignedLong(argument);
    if (tag == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    return PyLong_FromUnsignedLong(tag < MOST_TAGS ? runs_of[tag] : 0);
}

static PyObject *
sampler_mark(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *code;
    unsigned int tag;
    if (!PyArg_ParseTuple(args, "O!I", &PyCode_Type, &code, &tag))
        return NULL;
    uint32_t place = hash_address(code, MARK_BITS);
    while (marks[place].code != NULL && marks[place].code != (PyCodeObject *)code)
        place = (place + 1) % MOST_MARKS;
    if (marks[place].code == NULL) {
        if (mark_count >= MOST_MARKS / 2)
            Py_RETURN_FALSE;
        marks[place].code = (PyCodeObject *)Py_NewRef(code);
        mark_count++;
    }
    marks[place].tag = tag;
    Py_RETURN_TRUE;
}

static PyObject *
sampler_stop_at(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t count = PyTuple_GET_SIZE(args);
    if (count > MOST_BOUNDARIES) {
        PyErr_SetString(PyExc_ValueError, "stop_at() takes no more than 8 code objects");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (!PyCode_Check(PyTuple_GET_ITEM(args, i))) {
            PyErr_SetString(PyExc_TypeError, "stop_at() takes code objects");
            return NULL;
        }
    PyCodeObject *before[MOST_BOUNDARIES];
    int count_before = boundary_count;
    memcpy(before, boundaries, sizeof before);
    for (Py_ssize_t i = 0; i < count; i++)
        boundaries[i] = (PyCodeObject *)Py_NewRef(PyTuple_GET_ITEM(args, i));
    boundary_count = (int)count;
    for (int i = 0; i < count_before; i++)
        Py_DECREF(before[i]);
    Py_RETURN_NONE;
}

/* A member of gc.callbacks: counts collections of the oldest generation. */
static PyObject *
sampler_note_collection(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count_args)
{
    if (count_args == 2 && PyUnicode_Check(args[0]) && PyDict_Check(args[1]) &&
        PyUnicode_CompareWithASCIIString(args[0], "stop") == 0) {
        PyObject *generation = PyDict_GetItemString(args[1], "generation");
        if (generation != NULL && PyLong_CheckExact(generation)) {
            int overflow;
            if (PyLong_AsLongAndOverflow(generation, &overflow) == 2)
                collections++;
        }
    }
    Py_RETURN_NONE;
}

/* --- reading ------------------------------------------------------------------------------------------- */

/* What picks() returns; RECORD in sampler.py has the same layout. */
typedef struct {
    uint64_t serial, address, size;
    double weight, born_s;
    uint32_t tag, run, collections;
    int32_t stack;
    uint32_t resized;
} Record;

static PyObject *
sampler_picks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    /* Not straight into an object of Python's: making that may collect garbage, and so change the table. */
    Py_ssize_t count = 0, most = __atomic_load_n(&live, RELAXED) + 16;     /* threads in RAW may add some meanwhile */
    Record *records = malloc(most * sizeof(Record));
    if (records == NULL)
        return PyErr_NoMemory();
    pthread_mutex_lock(&lock);
    for (int32_t i = 0; on && i < used && count < most; i++) {
        const Pick *pick = &picks[i];
        if (pick->address)
            records[count++] = (Record){
                pick->serial, pick->address, pick->size, weight_of(pick), pick->born_ns / 1e9,
                pick->tag, pick->run, pick->collections, pick->stack != NULL ? pick->stack->number : -1,
                pick->resized,
            };
    }
    pthread_mutex_unlock(&lock);
    PyObject *result = PyBytes_FromStringAndSize((char *)records, count * (Py_ssize_t)sizeof(Record));
    free(records);
    return result;
}

/* Whether a block, which can't be freed meanwhile, is an object that refers to no other. */
static int
is_plain(const Pick *pick)
{
    const PyVarObject *object = (const PyVarObject *)pick->address;
    if (pick->whole < sizeof(PyVarObject) || Py_REFCNT(object) <= 0)
        return 0;
    const PyTypeObject *type = Py_TYPE(object);
    if (type == &PyBytes_Type)
        return object->ob_size >= 0 && (size_t)object->ob_size < pick->whole;
    return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyFloat_Type;
}

static PyObject *
sampler_plain(PyObject *Py_UNUSED(module), PyObject *argument)
{
    PyObject *asked = PySequence_Tuple(argument);
    if (asked == NULL)
        return NULL;
    Py_ssize_t number = PyTuple_GET_SIZE(asked), count = 0;
    uintptr_t *addresses = malloc((number + 1) * sizeof *addresses);
    PyObject *result = NULL;
    if (addresses == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; addresses != NULL && i < number; i++)
        addresses[i] = (uintptr_t)PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(asked, i));
    if (addresses != NULL && !PyErr_Occurred()) {
        /* What frees a block that is picked waits for the lock first, so that none is freed while it is read. */
        pthread_mutex_lock(&lock);
        for (Py_ssize_t i = 0; on && i < number; i++) {
            uint32_t mask = (1u << INDEX_BITS) - 1, place = hash_address((void *)addresses[i], INDEX_BITS);
            while (pick_index[place] && picks[pick_index[place] - 1].address != addresses[i])
                place = (place + 1) & mask;
            if (pick_index[place] && is_plain(&picks[pick_index[place] - 1]))
                addresses[count++] = addresses[i];
        }
        pthread_mutex_unlock(&lock);
        result = PyList_New(count);
        for (Py_ssize_t i = 0; result != NULL && i < count; i++) {
            PyObject *item = PyLong_FromUnsignedLongLong(addresses[i]);
            if (item == NULL)
                Py_CLEAR(result);
            else
                PyList_SET_ITEM(result, i, item);
        }
    }
    free(addresses);
    Py_DECREF(asked);
    return result;
}

static PyObject *
sampler_stack(PyObject *Py_UNUSED(module), PyObject *argument)
{
    long number = PyLong_AsLong(argument);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    /* The stack may go as soon as the result is being made: that may collect garbage, and run sweep(). Only threads
       with the GIL add stacks and drop them. */
    Frame frames[MOST_FRAMES];
    uint32_t depth = 0;
    if (number >= 0 && number < stack_count) {
        depth = stacks[number]->depth;
        memcpy(frames, stacks[number]->frames, depth * sizeof(Frame));
    }
    for (uint32_t i = 0; i < depth; i++)
        Py_INCREF(frames[i].code);
    PyObject *result = PyTuple_New(depth);
    for (uint32_t i = 0; result != NULL && i < depth; i++) {
        PyObject *item = Py_BuildValue("(Oi)", frames[i].code, PyCode_Addr2Line(frames[i].code, frames[i].lasti));
        if (item == NULL)
            Py_CLEAR(result);
        else
            PyTuple_SET_ITEM(result, i, item);
    }
    for (uint32_t i = 0; i < depth; i++)
        Py_DECREF(frames[i].code);
    return result;
}

/*
 * Which local variables of functions that run, in any thread, refer to one of some objects. A frame that runs is not
 * known to the garbage collector. A variable is compared as an address, as references are tagged since 3.14.
 */
static PyObject *
sampler_holding_frames(PyObject *Py_UNUSED(module), PyObject *argument)
{
    enum { MOST_FOUND = 64 };
    struct { Py_ssize_t object; PyCodeObject *code; int variable; } found[MOST_FOUND];
    int count = 0;
    PyObject *objects = PySequence_Tuple(argument);
    if (objects == NULL)
        return NULL;
    for (PyThreadState *state = PyInterpreterState_ThreadHead(interpreter); state; state = PyThreadState_Next(state))
        for (_PyInterpreterFrame *frame = innermost(state); frame != NULL; frame = frame->previous) {
            if (_PyFrame_IsIncomplete(frame))
                continue;
            PyCodeObject *code = code_of(frame);
            if (Py_REFCNT(code) <= 0)           /* as in walk() */
                continue;
            for (int i = 0; i < code->co_nlocalsplus && count < MOST_FOUND; i++) {
                uintptr_t value;
                memcpy(&value, &frame->localsplus[i], sizeof value);
                for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(objects) && count < MOST_FOUND; at++)
                    if ((value & ~(uintptr_t)3) == (uintptr_t)PyTuple_GET_ITEM(objects, at)) {
                        found[count].object = at;
                        found[count].code = (PyCodeObject *)Py_NewRef(code);
                        found[count++].variable = i;
                    }
            }
        }
    PyObject *result = PyList_New(0);
    for (int i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(found[i].code->co_localsplusnames, found[i].variable);
        PyObject *item = result ? Py_BuildValue("(nOO)", found[i].object, found[i].code, name) : NULL;
        if (item == NULL || PyList_Append(result, item) < 0)
            Py_CLEAR(result);
        Py_XDECREF(item);
        Py_DECREF(found[i].code);
    }
    Py_DECREF(objects);
    return result;
}

/* A value whose exact type has no code of the user: its content counts too, as a number may be replaced in place. */
static uint64_t
mark_of_value(uintptr_t value)
{
    PyObject *object = (PyObject *)(value & ~(uintptr_t)3);
    uint64_t content = 0;
    if (object == NULL || (value & 3) == 3)     /* 3.14 and later keep small numbers in the reference itself */
        return value;
    if (PyCell_Check(object) && PyCell_GET(object) != NULL)
        object = PyCell_GET(object);
    if (PyLong_CheckExact(object) || PyFloat_CheckExact(object))
        content = (uint64_t)PyObject_Hash(object);
    else if (PyList_CheckExact(object) || PyByteArray_CheckExact(object))
        content = (uint64_t)Py_SIZE(object);
    else if (PyDict_CheckExact(object))
        content = (uint64_t)PyDict_GET_SIZE(object);
    else if (PyAnySet_CheckExact(object))
        content = (uint64_t)PySet_GET_SIZE(object);
    return (uint64_t)(uintptr_t)object ^ content * UINT64_C(0x9e3779b97f4a7c15);
}

/*
 * A number that changes when a local variable of one of a thread's innermost functions does. Unlike by `f_locals`,
 * nothing refers to the variables afterwards.
 */
static PyObject *
sampler_locals_mark(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long thread = PyLong_AsUnsignedLong(argument);
    uint64_t mark = 0;
    if (thread == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (state != NULL && state->thread_id != thread)
        state = PyThreadState_Next(state);
    int walked = 0;
    for (_PyInterpreterFrame *frame = state ? innermost(state) : NULL; frame != NULL && walked < MOST_MARKED_FRAMES;
         frame = frame->previous) {
        if (_PyFrame_IsIncomplete(frame))
            continue;
        PyCodeObject *code = code_of(frame);
        if (Py_REFCNT(code) <= 0)               /* as in walk() */
            continue;
        walked++;
        for (int i = 0; i < code->co_nlocalsplus; i++) {
            uintptr_t value;
            memcpy(&value, &frame->localsplus[i], sizeof value);
            mark = (mark ^ mark_of_value(value)) * UINT64_C(0x100000001b3);
        }
    }
    return PyLong_FromUnsignedLongLong(mark);
}

/* Forget the stacks that no pick has any more, once they are many. Numbers that were read before are void afterwards. */
static PyObject *
sampler_sweep(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    Stack *gone = NULL;
    if (stack_count < MOST_STACKS / 2)
        Py_RETURN_FALSE;
    pthread_mutex_lock(&lock);
    int32_t known = stack_count;
    stack_count = 0;
    memset(stack_index, 0, sizeof stack_index);
    for (int32_t i = 0; i < known; i++) {
        Stack *stack = stacks[i];
        if (stack->live)
            enter_stack(stack, stack_count++);
        else {
            stack->next = gone;
            gone = stack;
        }
    }
    pthread_mutex_unlock(&lock);
    drop_stacks(gone);
    Py_RETURN_TRUE;
}

static PyObject *
sampler_stats(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    unsigned long long calls = under_gil.calls + __atomic_load_n(&raw.calls, RELAXED);
    return Py_BuildValue(
        "{s:K,s:d,s:i,s:i,s:K,s:K,s:K,s:K,s:I,s:d}", "calls", calls, "mean_bytes", mean, "live", (int)live, "stacks",
        (int)stack_count, "taken", (unsigned long long)taken, "died", (unsigned long long)died, "dropped",
        (unsigned long long)dropped, "thinned", (unsigned long long)thinned, "collections", collections, "pick_s",
        pick_ns / 1e9);
}

/* What our hooks add to one allocation and its release, seconds: the fastest of a few rounds of many live blocks. */
static PyObject *
sampler_cost(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    enum { ROUNDS = 7, BLOCKS = 1000, SIZE = 48 };
    double best_s[2] = {1.0, 1.0};
    void *blocks[BLOCKS];
    if (!on)
        return PyFloat_FromDouble(0.0);
    for (int round = 0; round < ROUNDS; round++)
        for (int hooked = 0; hooked < 2; hooked++) {
            const PyMemAllocatorEx *to = hooked ? &hooks[DOMAIN_OBJ] : original[DOMAIN_OBJ];
            int64_t started_ns = now_ns();
            for (int i = 0; i < BLOCKS; i++)
                blocks[i] = to->malloc(to->ctx, SIZE);
            for (int i = 0; i < BLOCKS; i++)
                to->free(to->ctx, blocks[i]);
            double each_s = (now_ns() - started_ns) / 1e9 / BLOCKS;
            if (each_s < best_s[hooked])
                best_s[hooked] = each_s;
        }
    return PyFloat_FromDouble(best_s[1] > best_s[0] ? best_s[1] - best_s[0] : 0.0);
}

/* --- the module ---------------------------------------------------------------------------------------- */

PyDoc_STRVAR(start_doc, "start(mean_bytes, seed=0)\n\nTake about one pick in mean_bytes; nothing if on already.");
PyDoc_STRVAR(stop_doc, "stop()\n\nTake none any more, and forget all.");
PyDoc_STRVAR(coarsen_doc, "coarsen()\n\nDouble mean_bytes, and thin out what was picked accordingly.");
PyDoc_STRVAR(plain_doc, "plain([address, ...]) -> [address, ...]\n\nThe picks in whose blocks a text, bytes or a number begins.");
PyDoc_STRVAR(is_on_doc, "is_on() -> bool\n\nWhether allocations come by the hooks; False once another tool has put them out.");
PyDoc_STRVAR(run_doc, "run(tag) -> int\n\nA run begins in this thread; what it allocates has this tag. Returns the tag before.");
PyDoc_STRVAR(restore_doc, "restore(tag)\n\nA run has ended; this thread has the tag that run() returned.");
PyDoc_STRVAR(runs_doc, "runs(tag) -> int\n\nHow many runs with this tag have begun.");
PyDoc_STRVAR(peaks_doc, "peaks(tag) -> bytes\n\nHow many runs held at most so much, an unsigned int a bucket; see peak_bucket().");
PyDoc_STRVAR(mark_doc, "mark(code, tag) -> bool\n\nWhat has this function in its stack, in a thread without a tag, has this tag.");
PyDoc_STRVAR(stop_at_doc, "stop_at(*codes)\n\nStacks end with a frame of one of these functions; what is outside of it is not walked.");
PyDoc_STRVAR(note_collection_doc, "note_collection(phase, info)\n\nFor gc.callbacks: counts full collections.");
PyDoc_STRVAR(picks_doc, "picks() -> bytes\n\nWhat is alive of the sample, a record each; see sampler.RECORD.");
PyDoc_STRVAR(stack_doc, "stack(number) -> ((code, line), ...)\n\nA stack, innermost frame first.");
PyDoc_STRVAR(holding_frames_doc, "holding_frames(objects) -> [(index, code, variable), ...]\n\nLocal variables of functions that run, in any thread, which refer to one of the objects.");
PyDoc_STRVAR(locals_mark_doc, "locals_mark(thread) -> int\n\nA number that changes when a local variable of the thread's innermost functions does.");
PyDoc_STRVAR(sweep_doc, "sweep() -> bool\n\nForget unused stacks if they are many; True if numbers of stacks have changed.");
PyDoc_STRVAR(stats_doc, "stats() -> dict\n\nCounters since the process began.");
PyDoc_STRVAR(cost_doc, "cost() -> float\n\nSeconds that the hooks add to one allocation and its release; takes 0.3 ms.");

static PyMethodDef methods[] = {
    {"start", sampler_start, METH_VARARGS, start_doc},
    {"stop", sampler_stop, METH_NOARGS, stop_doc},
    {"coarsen", sampler_coarsen, METH_NOARGS, coarsen_doc},
    {"plain", sampler_plain, METH_O, plain_doc},
    {"is_on", sampler_is_on, METH_NOARGS, is_on_doc},
    {"run", sampler_run, METH_O, run_doc},
    {"restore", sampler_restore, METH_O, restore_doc},
    {"runs", sampler_runs, METH_O, runs_doc},
    {"peaks", sampler_peaks, METH_O, peaks_doc},
    {"mark", sampler_mark, METH_VARARGS, mark_doc},
    {"stop_at", sampler_stop_at, METH_VARARGS, stop_at_doc},
    {"note_collection", (PyCFunction)(void (*)(void))sampler_note_collection, METH_FASTCALL, note_collection_doc},
    {"picks", sampler_picks, METH_NOARGS, picks_doc},
    {"stack", sampler_stack, METH_O, stack_doc},
    {"holding_frames", sampler_holding_frames, METH_O, holding_frames_doc},
    {"locals_mark", sampler_locals_mark, METH_O, locals_mark_doc},
    {"sweep", sampler_sweep, METH_NOARGS, sweep_doc},
    {"stats", sampler_stats, METH_NOARGS, stats_doc},
    {"cost", sampler_cost, METH_NOARGS, cost_doc},
    {NULL, NULL, 0, NULL},
};

/* Whether we see the frames that the interpreter says there are: its internals may differ from the headers'. */
static int
frames_are_known(PyThreadState *state)
{
    Frame frames[MOST_FRAMES];
    uint32_t tag = IGNORED, depth = walk(state, frames, &tag), i = 0;
    PyFrameObject *frame = PyThreadState_GetFrame(state);
    while (frame != NULL && i < depth) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        int same = code == frames[i].code && PyFrame_GetLasti(frame) == frames[i].lasti;
        Py_DECREF(code);
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_SETREF(frame, back);
        if (!same)
            break;
        i++;
    }
    int known = i == depth && depth > 0 && (frame == NULL || depth == MOST_FRAMES);
    Py_XDECREF(frame);
    return known;
}

static int
fill(PyObject *module)
{
    static int prepared;
    PyThreadState *state = state_under_gil();
    if (state == NULL || state->interp != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "the heap sampler works in the main interpreter only");
        return -1;
    }
    if (!frames_are_known(state)) {
        PyErr_SetString(PyExc_ImportError, "this interpreter's frames have another layout than those of its version");
        return -1;
    }
    interpreter = state->interp;
    if (!prepared) {
        if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
            PyErr_NoMemory();
            return -1;
        }
        Py_AtExit(at_exit);
        prepared = 1;
    }
    return PyModule_AddIntConstant(module, "IGNORED", IGNORED) < 0 ||
                   PyModule_AddIntConstant(module, "MOST_TAGS", MOST_TAGS) < 0 ||
                   PyModule_AddIntConstant(module, "MOST_PICKS", MOST_PICKS) < 0
               ? -1
               : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "celery_trace.heap._sampler",
    .m_doc = "A fair sample of the live heap. See the source for how it works.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__sampler(void)
{
    return PyModuleDef_Init(&definition);
}
