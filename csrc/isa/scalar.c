/* One lane, plain C11: for compilers without vector extensions, and the text to debug. */
#define LANES 1
#define SUFFIX scalar
#include "all.h"
