/*
 * The log of init (log.c) around sockets of the tests' own: standard input is what the application writes; the
 * arguments are descriptors: the listener, and what ends it.
 */
#include "log.c"

void die(const char *what)
{
    perror(what);
    _exit(1);
}

char **read_lines(const char *path)
{
    (void)path;
    return NULL;
}

int main(int argc, char **argv)
{
    fcntl(0, F_SETFL, O_NONBLOCK);
    if (argc == 3)
        keep_log(0, atoi(argv[2]), atoi(argv[1]));
    return 2;
}
