/* TestU01's SmallCrush and Crush on a C copy of the generator (pernodedrop/generator.py), which run.py first compares
   with the library's own words.

   Debian: apt install gcc libtestu01-0-dev
   cc -O2 -I/usr/include/testu01 testu01.c -o testu01 -ltestu01 -ltestu01probdist -ltestu01mylib -lm

   ./testu01 smallcrush out forward            ten tests, 15 statistics, 15 seconds
   ./testu01 crush seed reversed               96 tests, 144 statistics, about an hour
   ./testu01 words call forward 0 1000 | xxd   the first 1000 words, as raw bytes */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bbattery.h"
#include "swrite.h"
#include "unif01.h"

static const char *USAGE =
    "usage: testu01 smallcrush|crush|words ORDER forward|reversed [FIRST_SEED [WORDS]]\n"
    "ORDER: the coordinate that runs fastest: out, in, sample, call or seed; as in stream.py\n"
    "reversed: the bits of every word in reverse, since TestU01 looks at the upper ones most\n";

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

enum { OUT, IN, SAMPLE, CALL, SEED, WHEELS };

#define ENDLESS 0x80000000u
#define NEIGHBOURS 256 /* how many calls or seeds take turns where they run fastest */

static Wheel wheels[WHEELS] = {
    {"out", 64, 0, 0}, {"in", 4096, 0, 0}, {"sample", 128, 0, 0}, {"call", ENDLESS, 0, 0}, {"seed", ENDLESS, 0, 0},
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
                wheels[i].size = NEIGHBOURS;
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
    uint32_t w = word(coordinate(SEED), coordinate(CALL), 0, 0, coordinate(SAMPLE), coordinate(IN), coordinate(OUT));
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

int main(int count, char **arguments)
{
    if (count < 4 || count > 6 || !set_order(arguments[2])
        || (strcmp(arguments[3], "forward") != 0 && strcmp(arguments[3], "reversed") != 0)) {
        fputs(USAGE, stderr);
        return 2;
    }
    const char *battery = arguments[1];
    reversed = strcmp(arguments[3], "reversed") == 0;
    wheels[SEED].first = count > 4 ? strtoul(arguments[4], NULL, 10) : 0;
    unsigned long long words = count > 5 ? strtoull(arguments[5], NULL, 10) : 100;

    if (strcmp(battery, "words") == 0) {
        while (words--) {
            uint32_t w = next_word();
            if (fwrite(&w, sizeof w, 1, stdout) != 1)
                return 1;
        }
        return 0;
    }
    char name[100];
    snprintf(name, sizeof name, "pernodedrop, %s fastest, bits %s, first seed %u", turning[0]->name, arguments[3],
             wheels[SEED].first);
    unif01_Gen *generator = unif01_CreateExternGenBits(name, next_word);
    swrite_Basic = FALSE; /* the summary only */
    if (strcmp(battery, "smallcrush") == 0)
        bbattery_SmallCrush(generator);
    else if (strcmp(battery, "crush") == 0)
        bbattery_Crush(generator);
    else {
        fputs(USAGE, stderr);
        return 2;
    }
    unif01_DeleteExternGenBits(generator);
    printf(" Words read: %llu\n", words_read);
    return 0;
}
