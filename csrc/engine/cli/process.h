/* Calls of the operating system that the command alone needs: posix.c and windows.c. */
#ifndef MAMBA_CLI_PROCESS_H
#define MAMBA_CLI_PROCESS_H

/* Prepares the command. Windows would change line ends in the streams, and passes arguments in the
 * encoding of the machine: returns the arguments in UTF-8 and sets *argc to their number; returns
 * those of main if out of memory. Elsewhere, files that grow too large are errors, not signals. */
char **process_start(int *argc, char **argv);

enum gzip_end { GZIP_OK, GZIP_MISSING, GZIP_DAMAGED };

/* Starts `gzip -dc` on a file. Returns a descriptor of what it writes, or -1 with errno set, which
 * is always ENOSYS on Windows. */
int gzip_start(const char *path, int *process);

/* Waits for the end of a process of gzip_start. */
enum gzip_end gzip_wait(int process);

#endif
