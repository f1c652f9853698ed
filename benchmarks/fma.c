/* Peak rate of fused multiply-adds in float32: GFLOP/s of all OpenMP threads, a line each time.

   Every thread runs independent chains over vector registers, enough of them to hide the latency of
   two units; the factors keep the numbers between zero and one. */

#include <omp.h>
#include <stdio.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

typedef float vector __attribute__((vector_size(BYTES)));

enum { CHAINS = 12, LANES = BYTES / sizeof(float), ITERATIONS = 2000000, TIMES = 40 };

static volatile float kept; /* so that the chains are computed */

static float chains(void) {
    vector sums[CHAINS], factor = {0}, term = {0};
    factor += 0.999999f;
    term += 1e-7f;
    for (int i = 0; i < CHAINS; i++) sums[i] = factor * (float)i;
    for (long n = 0; n < ITERATIONS; n++)
        for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * factor + term;
    for (int i = 1; i < CHAINS; i++) sums[0] += sums[i];
    return sums[0][0];
}

int main(void) {
    double operations = 2.0 * CHAINS * LANES * ITERATIONS * omp_get_max_threads();
    for (int n = 0; n < TIMES; n++) {
        double start = omp_get_wtime();
#pragma omp parallel
        kept = chains();
        printf("%.9g %zu\n", operations / (omp_get_wtime() - start) / 1e9, sizeof(vector));
    }
    return 0;
}
