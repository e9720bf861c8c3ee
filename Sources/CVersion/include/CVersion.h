// The commit that this build was made from. A separate C target, because the package description can define a value for C and
// not for Swift, and because a new commit then recompiles only one small file.
#ifndef CVERSION_H
#define CVERSION_H

// The commit's name, or an empty string if the build did not know it.
const char *cversion_commit(void);

#endif
