/* unfit.h: the check of the values that are to be packed. */

/* The index of the first value that is NaN or beyond limit in magnitude, or n. Magnitudes compare like their bits, and
 * NaN lies above every number; a whole stretch is looked at before its place is sought, so that the search is rare. */
int64_t JOIN(qk_find_unfit, SUFFIX)(const float *x, int64_t n, float limit) {
    enum { STRETCH = 1024 };
    for (int64_t start = 0; start < n; start += STRETCH) {
        const int64_t stop = n - start < STRETCH ? n : start + STRETCH;
        int32_t largest = 0;
        for (int64_t i = start; i < stop; i++) {
            const int32_t magnitude = (int32_t)(float_bits(x[i]) & 0x7fffffff);
            largest = magnitude > largest ? magnitude : largest;
        }
        if ((uint32_t)largest <= float_bits(limit)) continue;
        for (int64_t i = start; i < stop; i++)
            if ((float_bits(x[i]) & 0x7fffffff) > float_bits(limit)) return i;
    }
    return n;
}
