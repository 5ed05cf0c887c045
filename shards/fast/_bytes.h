/* Bytes as they lie in memory: plain puts, and their hash. See _puts.c. */

#ifndef SHARDENGINE_BYTES_H
#define SHARDENGINE_BYTES_H

#include <stdint.h>
#include <stddef.h>
#include <string.h>

#define AHEAD 8 /* so many entries before its turn the memory of one is asked for: they lie all over it */

typedef struct {
    uint64_t prefix; /* the first eight bytes of the key, as a number that sorts like them */
    const uint8_t *key, *value;
    uint32_t key_size, value_size;
    uint32_t ordinal;
} Put;

/* Read one bin at *at. Returns 0 and moves *at behind it, or -1 when there is none, or not whole, before `end`. */
static int
read_bin(const uint8_t **at, const uint8_t *end, const uint8_t **data, uint32_t *size)
{
    const uint8_t *p = *at;
    size_t left = (size_t)(end - p), width;
    uint32_t n;
    if (left < 2) return -1;
    switch (p[0]) {
    case 0xc4: width = 2; n = p[1]; break;
    case 0xc5:
        if (left < 3) return -1;
        width = 3; n = (uint32_t)p[1] << 8 | p[2]; break;
    case 0xc6:
        if (left < 5) return -1;
        width = 5; n = (uint32_t)p[1] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 8 | p[4]; break;
    default: return -1;
    }
    if (left - width < n) return -1;
    *data = p + width;
    *size = n;
    *at = p + width + n;
    return 0;
}

static int
read_put(const uint8_t **at, const uint8_t *end, long tag, Put *put)
{
    const uint8_t *p = *at;
    if (end - p < 2 || p[0] != 0x93 || p[1] != (uint8_t)tag) return -1;
    p += 2;
    if (read_bin(&p, end, &put->key, &put->key_size) < 0) return -1;
    if (read_bin(&p, end, &put->value, &put->value_size) < 0) return -1;
    *at = p;
    return 0;
}

/* XXH64 with seed 0: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md#xxh64-algorithm-description */
#define P1 0x9E3779B185EBCA87ull
#define P2 0xC2B2AE3D27D4EB4Full
#define P3 0x165667B19E3779F9ull
#define P4 0x85EBCA77C2B2AE63ull
#define P5 0x27D4EB2F165667C5ull

static inline uint64_t rotl(uint64_t x, int r) { return x << r | x >> (64 - r); }
static inline uint64_t load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline uint32_t load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t mix(uint64_t acc, uint64_t lane) { return rotl(acc + lane * P2, 31) * P1; }

static uint64_t
xxh64(const uint8_t *p, size_t size)
{
    const uint8_t *end = p + size;
    uint64_t h;
    if (size >= 32) {
        uint64_t a = P1 + P2, b = P2, c = 0, d = 0 - P1;
        for (; end - p >= 32; p += 32) {
            a = mix(a, load64(p));
            b = mix(b, load64(p + 8));
            c = mix(c, load64(p + 16));
            d = mix(d, load64(p + 24));
        }
        h = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18);
        h = (h ^ mix(0, a)) * P1 + P4;
        h = (h ^ mix(0, b)) * P1 + P4;
        h = (h ^ mix(0, c)) * P1 + P4;
        h = (h ^ mix(0, d)) * P1 + P4;
    } else {
        h = P5;
    }
    h += size;
    for (; end - p >= 8; p += 8) h = rotl(h ^ mix(0, load64(p)), 27) * P1 + P4;
    if (end - p >= 4) { h = rotl(h ^ load32(p) * P1, 23) * P2 + P3; p += 4; }
    for (; p < end; p++) h = rotl(h ^ *p * P5, 11) * P1;
    h = (h ^ h >> 33) * P2;
    h = (h ^ h >> 29) * P3;
    return h ^ h >> 32;
}

#endif
