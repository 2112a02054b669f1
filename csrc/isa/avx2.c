/* Eight lanes; compiled with -mavx2 -mf16c. */
#define LANES 8
#define SUFFIX avx2
#include "all.h"
