/* Four lanes in AArch64 vector registers. */
#define LANES 4
#define SUFFIX neon
#include "all.h"
