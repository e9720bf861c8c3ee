#include "CVersion.h"

#ifndef VMM_BLK_COMMIT
#define VMM_BLK_COMMIT ""
#endif

const char *cversion_commit(void) { return VMM_BLK_COMMIT; }
