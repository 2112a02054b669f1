/* Four lanes, with whatever the target always has: SSE2 on x86-64. */
#define LANES 4
#define SUFFIX baseline
#include "all.h"
