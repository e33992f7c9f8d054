/*
 * Runs the parts of init.c that a test can watch, without being process 1: `harness OCI PROGRAM [ARGUMENT…]` reads the
 * file OCI as init reads /oci, takes its own environment for /env, and starts the program as init would.
 * Whatever init does to a machine, restart it, ends this program with status 99 instead.
 */
#define _GNU_SOURCE
#include <sys/reboot.h>
#include <unistd.h>

#define reboot(command) _exit(99)
#define sync() ((void)0)
#define main init_main
#include "init.c"
#undef main

int main(int argc, char **argv)
{
    char *env[64] = {NULL}; /* a copy, as init's own environment is not the program's */
    for (int i = 0; i < 63 && environ[i]; i++)
        env[i] = environ[i];
    (void)argc;
    execute(argv + 2, env, read_oci(argv[1]));
}
