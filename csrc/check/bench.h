/* bench.h: the benchmark of the kernels alone. */
#ifndef QK_BENCH_H
#define QK_BENCH_H

#include <stdint.h>

/* Print the million weights a second of every type, mode and instruction set, on n_rows x n_columns weights and one
 * thread; n_columns is a multiple of 256. In a turn a call is repeated for turn_seconds, and the best one counts. First
 * every answer is compared with scalar's; where one differs, the process ends with 1 and a sentence instead. */
void bench(int64_t n_rows, int64_t n_columns, double turn_seconds);

#endif
