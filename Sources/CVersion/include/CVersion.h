// What this build was made from. A C target of its own, because the package description can give C a value and Swift none, and
// because then another commit means one small file to compile.
#ifndef CVERSION_H
#define CVERSION_H

// The commit's name, or an empty string where the build knew of none.
const char *cversion_commit(void);

#endif
