/*
 * An application for tests: vsock both ways, and its clock. Each connection has a process of its own.
 *
 *   port 7    sends back what comes
 *   port 37   for every byte, its clock: nanoseconds since 1970, eight bytes, little-endian
 *   port 38   eight bytes: that many nanoseconds are added to the clock
 *   port 39   four bytes: connects to that port of the parent, says its own port there, and hands back the answer
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void copy(int from, int to)
{
    char data[65536];
    ssize_t got;
    while ((got = read(from, data, sizeof(data))) > 0)
        for (ssize_t sent = 0, n; sent < got; sent += n)
            if ((n = write(to, data + sent, (size_t)(got - sent))) < 0)
                return;
}

static void tell(int client)
{
    char byte;
    while (read(client, &byte, 1) == 1) {
        int64_t time = now();
        (void)!write(client, &time, sizeof(time));
    }
}

static void jump(int client)
{
    int64_t by;
    if (recv(client, &by, sizeof(by), MSG_WAITALL) != sizeof(by))
        return;
    by += now();
    struct timespec time = {.tv_sec = by / SECOND, .tv_nsec = by % SECOND};
    (void)!write(client, clock_settime(CLOCK_REALTIME, &time) ? "n" : "y", 1);
}

static void call(int client)
{
    struct sockaddr_vm parent = {.svm_family = AF_VSOCK, .svm_cid = 3}, own;
    socklen_t length = sizeof(own);
    uint32_t port;
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (recv(client, &port, sizeof(port), MSG_WAITALL) != sizeof(port))
        return;
    parent.svm_port = port;
    if (connect(fd, (struct sockaddr *)&parent, sizeof(parent)) < 0) {
        dprintf(client, "refused");
        return;
    }
    getsockname(fd, (struct sockaddr *)&own, &length);
    dprintf(fd, "from port %u\n", own.svm_port);
    shutdown(fd, SHUT_WR);
    copy(fd, client);
}

static void echo(int client)
{
    copy(client, client);
}

static void serve(unsigned int port, void (*handle)(int))
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, 16) < 0)
        perror("peer");
    if (fork() != 0)
        return;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (fork() == 0) {
            handle(client);
            _exit(0);
        }
        close(client);
    }
}

int main(void)
{
    signal(SIGCHLD, SIG_IGN);
    serve(7, echo);
    serve(37, tell);
    serve(38, jump);
    serve(39, call);
    puts("peer: ready");
    fflush(stdout);
    for (;;)
        pause();
}
