/* Sixteen lanes; compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mf16c. */
#define LANES 16
#define SUFFIX avx512
#include "all.h"
