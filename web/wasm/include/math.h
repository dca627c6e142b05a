/* The functions of <math.h> that the engine calls. */
#ifndef MAMBA_WASM_MATH_H
#define MAMBA_WASM_MATH_H

#define INFINITY __builtin_inff()

float expf(float x);
float exp2f(float x);
float log1pf(float x);

/* Instructions of WebAssembly. */
#define fabsf __builtin_fabsf
#define sqrtf __builtin_sqrtf
#define sqrt __builtin_sqrt

#endif
