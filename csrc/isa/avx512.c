/* Sixteen lanes; compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl. */
#define LANES 16
#define SUFFIX avx512
#include "all.h"
