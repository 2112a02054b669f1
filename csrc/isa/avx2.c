/* Eight lanes; compiled with -mavx2. */
#define LANES 8
#define SUFFIX avx2
#include "all.h"
