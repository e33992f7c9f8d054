/*
 * The application's output, for the parent to see: in images that ask for it by a file /log, which is measured
 * (build-enclave --show-log, or the label alcove.log of the container image). The file holds the vsock port.
 *
 * A small process stands between the application and the console. It keeps the last of the output, and answers callers
 * of the port in the words of proxy/lifeline.py. A caller sends one line:
 *     log     what was kept, then what comes, until the application ends
 *     tail    what was kept, and no more
 * The application never waits for a caller: one that is too slow is told how much it has missed. When the application has
 * ended, what is kept is handed to the parent (enclave/last_words.py), for those who ask afterwards.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEPT (128 * 1024) /* bytes */
#define CALLERS 32 /* beyond, they wait in the backlog */
#define MAX_LINE 8
#define LINE_SECONDS 5 /* for a caller to say what it wants */
#define HAND_OVER_SECONDS 1 /* for each step */
#define FAREWELL_SECONDS 2 /* for callers to take the last of the log */

enum { OUTPUT, END, LISTENER, FIXED }; /* places in the list that poll is given; callers follow */

struct caller {
    int fd;
    char line[MAX_LINE];
    size_t got;
    int follows; /* -1: has not said what it wants */
    uint64_t at; /* what it has been sent of the log, or passed over */
    int64_t deadline;
};

static unsigned char kept[KEPT];
static uint64_t total; /* bytes that the application has written */
static struct caller callers[CALLERS];
static size_t count; /* of callers */
static int64_t farewell; /* when this ends; 0 before the application has */

static int64_t seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

static void keep(const unsigned char *data, size_t length)
{
    for (size_t i = 0; i < length; i++)
        kept[(total + i) % KEPT] = data[i];
    total += length;
}

/* What the application has written goes where it went without this, and is kept. 0 at its end, -1 when there is no more now. */
static ssize_t take_output(int fd)
{
    static unsigned char data[16384];
    ssize_t got = read(fd, data, sizeof(data));
    for (ssize_t put = 0, n; put < got; put += n)
        if ((n = write(STDOUT_FILENO, data + put, (size_t)(got - put))) <= 0)
            break; /* the console is gone: the log goes on */
    if (got > 0)
        keep(data, (size_t)got);
    return got;
}

/* How much may be in the pipe when the application ends. */
static uint64_t pipe_size(int fd)
{
    int size = fcntl(fd, F_GETPIPE_SZ);
    return size > 0 ? (uint64_t)size : 0;
}

static void drop(size_t index)
{
    close(callers[index].fd);
    callers[index] = callers[--count];
}

static void greet(int listener)
{
    int fd = count < CALLERS ? accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
    if (fd >= 0)
        callers[count++] = (struct caller){.fd = fd, .follows = -1, .deadline = seconds() + LINE_SECONDS};
}

/* Read a caller's line; -1 when it is to be dropped. */
static int hear(struct caller *caller)
{
    ssize_t got = recv(caller->fd, caller->line + caller->got, MAX_LINE - caller->got, 0);
    if (got <= 0)
        return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    caller->got += (size_t)got;
    if (!memchr(caller->line, '\n', caller->got))
        return caller->got < MAX_LINE ? 0 : -1;
    if (caller->got == 4 && memcmp(caller->line, "log\n", 4) == 0)
        caller->follows = 1;
    else if (caller->got == 5 && memcmp(caller->line, "tail\n", 5) == 0)
        caller->follows = 0;
    return caller->follows < 0 ? -1 : 0;
}

/* Send a caller what it has not got; -1 when it is to be dropped. */
static int serve(struct caller *caller)
{
    uint64_t first = total > KEPT ? total - KEPT : 0;
    char note[64];
    if (caller->at < first && caller->at > 0) {
        int length = snprintf(note, sizeof(note), "\n[%llu bytes are lost]\n", (unsigned long long)(first - caller->at));
        if (send(caller->fd, note, (size_t)length, MSG_NOSIGNAL) < 0)
            return errno == EAGAIN ? 0 : -1;
    }
    if (caller->at < first)
        caller->at = first;
    while (caller->at < total) {
        size_t from = caller->at % KEPT, most = KEPT - from;
        size_t length = total - caller->at < most ? (size_t)(total - caller->at) : most;
        ssize_t sent = send(caller->fd, kept + from, length, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN ? 0 : -1;
        caller->at += (uint64_t)sent;
    }
    return caller->follows && !farewell ? 0 : -1;
}

static void attend(size_t index, short events)
{
    struct caller *caller = &callers[index];
    int gone = events & (POLLERR | POLLHUP | POLLNVAL);
    if (caller->follows < 0) {
        gone = gone || ((events & POLLIN) && hear(caller) < 0) || seconds() > caller->deadline || farewell;
        events |= POLLOUT;
    }
    if (!gone && caller->follows >= 0 && (events & POLLOUT || farewell))
        gone = serve(caller) < 0;
    if (gone)
        drop(index);
}

static void wait_for_something(struct pollfd *list)
{
    int patience = farewell ? 100 : -1;
    list[LISTENER].events = count < CALLERS && !farewell ? POLLIN : 0;
    for (size_t i = 0; i < count; i++) {
        int waits = callers[i].at < total || (!callers[i].follows && callers[i].got);
        list[FIXED + i].fd = callers[i].fd;
        list[FIXED + i].events = callers[i].follows < 0 ? POLLIN : waits ? POLLOUT : 0;
        list[FIXED + i].revents = 0;
        if (callers[i].follows < 0 && patience < 0)
            patience = 1000;
    }
    for (size_t i = 0; i < FIXED; i++)
        list[i].revents = 0; /* as those of callers: a call that fails leaves them as they were */
    poll(list, FIXED + count, patience);
}

/* Where the port refuses, as on AWS's hypervisor, nobody wants it. */
static void hand_over(void)
{
    struct timeval patience = {.tv_sec = HAND_OVER_SECONDS};
    uint64_t at = total > KEPT ? total - KEPT : 0;
    int fd = total ? connect_parent(LAST_WORDS_PORT, &patience) : -1;
    if (fd < 0)
        return;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    while (at < total) {
        size_t from = at % KEPT, most = KEPT - from;
        ssize_t sent = send(fd, kept + from, total - at < most ? (size_t)(total - at) : most, MSG_NOSIGNAL);
        if (sent <= 0)
            break;
        at += (uint64_t)sent;
    }
    shutdown(fd, SHUT_WR);
    (void)!read(fd, &(char){0}, 1); /* its end: the parent has it all */
    close(fd);
}

/* Until the application has ended, and everybody has heard of it. */
static void keep_log(int output, int end, int listener)
{
    struct pollfd list[FIXED + CALLERS] = {
        [OUTPUT] = {.fd = output, .events = POLLIN},
        [END] = {.fd = end, .events = POLLIN},
        [LISTENER] = {.fd = listener},
    };
    while (!farewell || (count && seconds() < farewell)) {
        wait_for_something(list);
        for (size_t i = count; i-- > 0;) /* from the last: what is dropped is replaced by the last */
            attend(i, list[FIXED + i].revents);
        if (list[OUTPUT].revents && take_output(output) == 0)
            list[OUTPUT].fd = -1; /* nobody is left who could write */
        if (list[END].revents && !farewell) {
            uint64_t all = total + pipe_size(output); /* who writes on, left behind by the application, keeps no enclave */
            while (total < all && take_output(output) > 0)
                ;
            farewell = seconds() + FAREWELL_SECONDS;
            list[END].fd = -1;
        }
        if (list[LISTENER].revents & POLLIN)
            greet(listener);
    }
    hand_over();
    _exit(0);
}

static int listen_on(unsigned int port)
{
    struct sockaddr_vm here = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof(here)) < 0 || listen(fd, CALLERS) < 0)
        die("/log: listen");
    return fd;
}

unsigned int read_log_port(const char *path)
{
    char **lines = read_lines(path);
    char *rest;
    if (!lines) {
        if (errno != ENOENT)
            die(path);
        return 0;
    }
    errno = EINVAL;
    unsigned long port = lines[0] ? strtoul(lines[0], &rest, 10) : 0;
    if (!port || *rest || port >= UINT32_MAX)
        die("/log: not a port");
    return (unsigned int)port;
}

void start_log(unsigned int port, struct log *log)
{
    int output[2], end[2], listener = listen_on(port);
    if (pipe2(output, O_CLOEXEC) < 0 || pipe2(end, O_CLOEXEC) < 0)
        die("/log: pipe");
    fcntl(output[0], F_SETFL, O_NONBLOCK);
    log->pid = fork();
    if (log->pid < 0)
        die("/log: fork");
    if (log->pid == 0) {
        close(output[1]);
        close(end[1]);
        prctl(PR_SET_NAME, "alcove-log");
        keep_log(output[0], end[0], listener);
    }
    close(output[0]);
    close(end[0]);
    close(listener);
    log->output = output[1];
    log->end = end[1];
}

void end_log(struct log *log)
{
    if (log->pid <= 0)
        return;
    close(log->output);
    close(log->end);
    while (waitpid(log->pid, NULL, 0) < 0 && errno == EINTR)
        ;
}
