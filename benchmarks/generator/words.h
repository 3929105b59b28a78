/* The generator (pernodedrop/generator.py) and its words in an order of stream.py, in C; run.py compares them with the
   library's own. */

#include <stdint.h>
#include <string.h>

/* The generator. */

#define GOLDEN 0x9E3779B9u

static uint32_t keyed_triple32(uint32_t x, uint32_t key)
{
    x ^= x >> 17;
    x *= 0xED5AD4BBu;
    x ^= x >> 11;
    x ^= key;
    x *= 0xAC4C1B51u;
    x ^= x >> 15;
    x *= 0x31848BABu;
    x ^= x >> 14;
    return x;
}

static uint32_t mix(uint32_t x)
{
    return keyed_triple32(x, 0);
}

static uint32_t word(uint32_t seed, uint32_t call, uint32_t lane, uint32_t time, uint32_t sample, uint32_t in,
                     uint32_t out)
{
    uint32_t k0 = mix(in + mix(sample + mix(time + mix(lane + mix(call + mix(seed))))));
    uint32_t k1 = mix((sample * GOLDEN) ^ mix(in + mix(time ^ mix(lane ^ mix(call ^ mix(seed ^ GOLDEN))))));
    return keyed_triple32(out ^ k0, k1);
}

/* The coordinates as an odometer, its fastest wheel first. */

typedef struct {
    const char *name;
    uint32_t size, first, value;
} Wheel;

enum { OUT, IN, SAMPLE, CALL, SEED, TIME, LANE, WHEELS };

#define ENDLESS 0x80000000u
#define NEIGHBOURS 256 /* how many calls, seeds or positions take turns where they run fastest */

static Wheel wheels[WHEELS] = {
    {"out", 64, 0, 0},       {"in", 4096, 0, 0}, {"sample", 128, 0, 0}, {"call", ENDLESS, 0, 0},
    {"seed", ENDLESS, 0, 0}, {"time", 1, 0, 0},  {"lane", 1, 0, 0},
};
static Wheel *turning[WHEELS];
static int reversed;
static unsigned long long words_read;

static int set_order(const char *fastest)
{
    int n = 0;
    for (int i = 0; i < WHEELS; i++)
        if (strcmp(wheels[i].name, fastest) == 0) {
            if (i >= CALL)
                wheels[i].size = i == LANE ? 2 : NEIGHBOURS;
            turning[n++] = &wheels[i];
        }
    if (n == 0)
        return 0;
    for (int i = 0; i < WHEELS; i++)
        if (&wheels[i] != turning[0])
            turning[n++] = &wheels[i];
    return 1;
}

static uint32_t coordinate(int wheel)
{
    return wheels[wheel].first + wheels[wheel].value;
}

static unsigned int next_word(void)
{
    words_read++;
    uint32_t w = word(coordinate(SEED), coordinate(CALL), coordinate(LANE), coordinate(TIME), coordinate(SAMPLE),
                      coordinate(IN), coordinate(OUT));
    for (int i = 0; i < WHEELS; i++) {
        if (++turning[i]->value < turning[i]->size)
            break;
        turning[i]->value = 0;
    }
    if (reversed) {
        w = (w >> 1 & 0x55555555u) | (w & 0x55555555u) << 1;
        w = (w >> 2 & 0x33333333u) | (w & 0x33333333u) << 2;
        w = (w >> 4 & 0x0F0F0F0Fu) | (w & 0x0F0F0F0Fu) << 4;
        w = (w >> 8 & 0x00FF00FFu) | (w & 0x00FF00FFu) << 8;
        w = w >> 16 | w << 16;
    }
    return w;
}
