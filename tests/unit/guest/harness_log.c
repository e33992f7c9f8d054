/*
 * The log of init (log.c) around sockets of the tests' own: standard input is what the application writes; the
 * arguments are descriptors: the listener, and what ends it.
 */
#include "log.c"

#include <sys/un.h>

void die(const char *what)
{
    perror(what);
    _exit(1);
}

/* What is handed over goes to a socket of that name, if there is one. */
int connect_parent(unsigned int port, const struct timeval *patience)
{
    struct sockaddr_un there = {.sun_family = AF_UNIX, .sun_path = "last-words"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)port;
    (void)patience;
    return connect(fd, (struct sockaddr *)&there, sizeof(there)) == 0 ? fd : -1;
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
