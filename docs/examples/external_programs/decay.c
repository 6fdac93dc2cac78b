/* Radioactive decay counted in ten intervals: decay RATE AMOUNT SEED OUTPUT
   Writes ten Poisson counts with mean AMOUNT * exp(-RATE * t), t = 0 ... 9, as one line of CSV. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static double uniform(void) { return (rand() + 0.5) / (RAND_MAX + 1.0); }

static int poisson(double mean) {
    int count = 0;
    for (double left = mean + log(uniform()); left > 0; left += log(uniform())) count++;
    return count;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: decay RATE AMOUNT SEED OUTPUT\n");
        return 2;
    }
    double rate = atof(argv[1]), amount = atof(argv[2]);
    srand((unsigned)atoi(argv[3]));
    FILE *file = fopen(argv[4], "w");
    if (!file) {
        perror(argv[4]);
        return 1;
    }
    for (int t = 0; t < 10; t++) fprintf(file, t ? ",%d" : "%d", poisson(amount * exp(-rate * t)));
    fputc('\n', file);
    return fclose(file) ? 1 : 0;
}
