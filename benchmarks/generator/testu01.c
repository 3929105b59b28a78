/* TestU01's SmallCrush and Crush on a C copy of the generator (pernodedrop/generator.py), which run.py first compares
   with the library's own words.

   Debian: apt install gcc libtestu01-0-dev
   cc -O2 -I/usr/include/testu01 testu01.c -o testu01 -ltestu01 -ltestu01probdist -ltestu01mylib -lm

   ./testu01 smallcrush out forward            ten tests, 15 statistics, 15 seconds
   ./testu01 crush seed reversed               96 tests, 144 statistics, about an hour
   ./testu01 words call forward 0 1000 | xxd   the first 1000 words, as raw bytes */

#include <stdio.h>
#include <stdlib.h>

#include "bbattery.h"
#include "swrite.h"
#include "unif01.h"
#include "words.h"

static const char *USAGE =
    "usage: testu01 smallcrush|crush|words ORDER forward|reversed [FIRST_SEED [WORDS]]\n"
    "ORDER: the coordinate that runs fastest: out, in, sample, call, seed, time or lane; as in stream.py\n"
    "reversed: the bits of every word in reverse, since TestU01 looks at the upper ones most\n";

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
