/* The generator's words as an endless stream of raw bytes, fast enough for PractRand: 30 million a second.

   cc -O3 words.c -o words
   ./words out 0 1000 | xxd            the first 1000 words of an order of stream.py, from seed 0
   ./words seed | RNG_test stdin32 -tlmax 16GB */

#include <stdio.h>
#include <stdlib.h>

#include "words.h"

#define TOGETHER 16384

int main(int count, char **arguments)
{
    static uint32_t some[TOGETHER];
    if (count < 2 || count > 4 || !set_order(arguments[1])) {
        fputs("usage: words out|in|sample|call|seed|time|lane [FIRST_SEED [WORDS]]\n", stderr);
        return 2;
    }
    wheels[SEED].first = count > 2 ? strtoul(arguments[2], NULL, 10) : 0;
    unsigned long long left = count > 3 ? strtoull(arguments[3], NULL, 10) : ~0ull;
    while (left > 0) {
        size_t n = left < TOGETHER ? left : TOGETHER;
        for (size_t i = 0; i < n; i++)
            some[i] = next_word();
        if (fwrite(some, sizeof *some, n, stdout) != n)
            return 1;
        left -= n;
    }
    return 0;
}
