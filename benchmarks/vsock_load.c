/*
 * What runs in the enclave of benchmarks/vsock_guest.py and tests/vm/test_vsock.py.
 *
 * Port 7000 takes one command a connection, a line, and answers with a line:
 *
 *   out PORT STREAMS SIZE BYTES    connect so many streams to the parent's PORT; write BYTES on each, SIZE at a time
 *   in PORT STREAMS SIZE BYTES     the same, reading to the end of file; answers with the bytes read
 *   ping PORT STREAMS SIZE COUNT   on each stream COUNT times: write SIZE bytes, then read as many back
 *   local 0 0 SIZE BYTES           no vsock: BYTES through a socket pair of this kernel, the limit of the others
 *   turn 0 0 SIZE COUNT            no vsock: COUNT exchanges of SIZE bytes between two processes of this kernel
 *   clock 0 0 1 0                  the time of this kernel: nanoseconds since 1970, and three zeros
 *   errno PORT CID TYPE 0          what connect() says, of a socket of this TYPE, and after how many nanoseconds
 *
 * The answer of `errno` is "NANOSECONDS ERRNO 0 0"; of all others "NANOSECONDS BYTES MEDIAN WORST": from the first byte to the last, and of single exchanges.
 *
 * Port 7001 gives back what it is sent; after the end of file it sends the rest and ends too (half-close).
 *
 * Byte number n of a stream is (n * 7 + n / 251) & 0xff, so that a reader notices what is lost or moved.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

enum { COMMANDS = 7000, ECHO = 7001, PARENT = 3, MAX_STREAMS = 2048, MAX_SIZE = 1 << 16, PERIOD = 256 * 251 };

struct stream {
    uint64_t moved;   /* bytes, in the direction under way */
    uint64_t waiting; /* ping: bytes still to come back */
    int64_t began;
};

static struct pollfd polls[MAX_STREAMS];
static struct stream streams[MAX_STREAMS];
static unsigned char pattern[PERIOD + MAX_SIZE], buffer[MAX_SIZE];
static int64_t samples[1 << 20];
static size_t sampled;

static void die(const char *what)
{
    fprintf(stderr, "vsock_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t read_clock(clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int64_t now(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

static int ascending(const void *a, const void *b)
{
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

static void sample(int64_t nanoseconds)
{
    if (sampled < sizeof(samples) / sizeof(*samples))
        samples[sampled++] = nanoseconds;
}

static int dial(unsigned port)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = PARENT, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        die("connect");
    return fd;
}

static int listen_on(unsigned port)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 128) < 0)
        die("listen");
    return fd;
}

/* One step of one stream: 1 when it is done. */
typedef int step(struct pollfd *poll, struct stream *stream, size_t size, uint64_t goal);

static int write_step(struct pollfd *poll, struct stream *stream, size_t size, uint64_t goal)
{
    uint64_t left = goal - stream->moved;
    ssize_t count = write(poll->fd, pattern + stream->moved % PERIOD, left < size ? left : size);
    if (count < 0 && errno != EAGAIN)
        die("write");
    if (count > 0)
        stream->moved += count;
    if (stream->moved < goal)
        return 0;
    shutdown(poll->fd, SHUT_WR);
    return 1;
}

static int read_step(struct pollfd *poll, struct stream *stream, size_t size, uint64_t goal)
{
    ssize_t count = read(poll->fd, buffer, size);
    (void)goal;
    if (count < 0 && errno != EAGAIN)
        die("read");
    if (count > 0)
        stream->moved += count;
    return count == 0;
}

static int ping_step(struct pollfd *poll, struct stream *stream, size_t size, uint64_t goal)
{
    if (!stream->waiting) {
        stream->began = now();
        if (write(poll->fd, pattern, size) != (ssize_t)size)
            die("write");
        stream->waiting = size;
        poll->events = POLLIN;
        return 0;
    }
    ssize_t count = read(poll->fd, buffer, stream->waiting);
    if (count == 0 || (count < 0 && errno != EAGAIN))
        die("read");
    if (count > 0)
        stream->waiting -= count;
    if (stream->waiting)
        return 0;
    sample(now() - stream->began);
    poll->events = POLLOUT;
    return ++stream->moved == goal;
}

static void drive(int answer, step *act, short events, unsigned port, size_t count, size_t size, uint64_t goal)
{
    size_t open = count;
    uint64_t total = 0;
    memset(streams, 0, sizeof(streams));
    for (size_t i = 0; i < count; i++) {
        polls[i] = (struct pollfd){.fd = dial(port), .events = events};
        fcntl(polls[i].fd, F_SETFL, O_NONBLOCK);
    }
    int64_t began = now();
    while (open) {
        if (poll(polls, count, -1) < 0)
            die("poll");
        for (size_t i = 0; i < count; i++) {
            if (!polls[i].revents || !act(&polls[i], &streams[i], size, goal))
                continue;
            if (act == write_step) { /* what is measured ends when the other side has it all */
                char rest;
                fcntl(polls[i].fd, F_SETFL, 0);
                if (read(polls[i].fd, &rest, 1) != 0)
                    die("the other side's end");
            }
            close(polls[i].fd);
            polls[i].fd = -1;
            total += streams[i].moved;
            open--;
        }
    }
    int64_t took = now() - began;
    qsort(samples, sampled, sizeof(*samples), ascending);
    dprintf(answer, "%lld %llu %lld %lld\n", (long long)took, (unsigned long long)total,
            (long long)(sampled ? samples[sampled / 2] : 0), (long long)(sampled ? samples[sampled * 99 / 100] : 0));
}

/* The limits: the same work without a device. */
static void local(int answer, size_t size, uint64_t goal, int turns)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        die("socketpair");
    pid_t child = fork();
    if (child == 0) {
        ssize_t count;
        close(pair[0]);
        while ((count = read(pair[1], buffer, size)) > 0)
            if (turns && write(pair[1], buffer, count) != count)
                die("write");
        _exit(0);
    }
    close(pair[1]);
    int64_t began = now();
    if (turns)
        for (uint64_t i = 0; i < goal; i++) {
            int64_t sent = now();
            if (write(pair[0], pattern, size) != (ssize_t)size || read(pair[0], buffer, size) != (ssize_t)size)
                die("turn");
            sample(now() - sent);
        }
    else
        for (uint64_t moved = 0; moved < goal; moved += size)
            if (write(pair[0], pattern, size) != (ssize_t)size)
                die("write");
    close(pair[0]);
    waitpid(child, NULL, 0);
    int64_t took = now() - began;
    qsort(samples, sampled, sizeof(*samples), ascending);
    dprintf(answer, "%lld %llu %lld %lld\n", (long long)took, (unsigned long long)goal,
            (long long)(sampled ? samples[sampled / 2] : 0), (long long)(sampled ? samples[sampled * 99 / 100] : 0));
}

static void attempt(int answer, unsigned port, unsigned cid, int type)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    int64_t began = now();
    int fd = socket(AF_VSOCK, type, 0);
    int failed = fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? errno : 0;
    dprintf(answer, "%lld %d 0 0\n", (long long)(now() - began), failed);
}

static void command(int fd)
{
    char line[128] = "", name[16];
    unsigned port, count, size;
    unsigned long long goal;
    for (size_t at = 0; at < sizeof(line) - 1 && read(fd, line + at, 1) == 1 && line[at] != '\n'; at++)
        ;
    int fields = sscanf(line, "%15s %u %u %u %llu", name, &port, &count, &size, &goal);
    if (fields != 5 || count > MAX_STREAMS || size > MAX_SIZE || !size)
        exit(1);
    if (!strcmp(name, "errno"))
        attempt(fd, port, count, size);
    else if (!strcmp(name, "clock"))
        dprintf(fd, "%lld 0 0 0\n", (long long)read_clock(CLOCK_REALTIME));
    else if (!strcmp(name, "out"))
        drive(fd, write_step, POLLOUT, port, count, size, goal);
    else if (!strcmp(name, "in"))
        drive(fd, read_step, POLLIN, port, count, size, goal);
    else if (!strcmp(name, "ping"))
        drive(fd, ping_step, POLLOUT, port, count, size, goal);
    else
        local(fd, size, goal, !strcmp(name, "turn"));
}

static void echo(int fd)
{
    ssize_t count, done;
    while ((count = read(fd, buffer, sizeof(buffer))) > 0)
        for (ssize_t at = 0; at < count; at += done)
            if ((done = write(fd, buffer + at, count - at)) < 0)
                exit(1);
    shutdown(fd, SHUT_WR);
}

static void serve(unsigned port, void (*each)(int))
{
    int listener = listen_on(port);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            die("accept");
        if (fork() == 0) {
            each(fd);
            exit(0);
        }
        close(fd);
    }
}

int main(void)
{
    for (size_t n = 0; n < sizeof(pattern); n++)
        pattern[n] = (n % PERIOD) * 7 + (n % PERIOD) / 251;
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    if (fork() == 0)
        serve(ECHO, echo);
    printf("vsock_load: ready\n");
    fflush(stdout);
    serve(COMMANDS, command);
}
