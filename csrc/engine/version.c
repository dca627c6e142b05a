#include "version.h"

#include "mamba.h"

const char *mamba_version(void)
{
    return MAMBA_VERSION;
}
