// What the shared library exports. Not for users. Part of ropeway; Apache-2.0.
#pragma once

// The library is compiled with hidden names. What has code in it, or is thrown or overridden across its
// border, carries this; everything else of a public header is inline or a plain value.
#if defined(__GNUC__)
#define ROPEWAY_API __attribute__((visibility("default")))
#else
#define ROPEWAY_API
#endif
