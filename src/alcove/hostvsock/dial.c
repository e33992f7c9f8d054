/*
 * Connecting: to an enclave by the hybrid protocol (`CONNECT <port>`, `OK <number>`), to the parent itself directly.
 *
 * Also on a non-blocking socket the answer is waited for, up to SO_VM_SOCKETS_CONNECT_TIMEOUT: were the program told
 * EINPROGRESS, its first read could meet our handshake. An enclave that runs answers at once.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINE 32 /* the longest answer */
#define PAUSE_NS 5000000 /* between tries while the supervisor's backlog is full */

static int64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int is_parent(unsigned int cid)
{
    return cid == VMADDR_CID_LOCAL || cid == VMADDR_CID_HOST || cid == PARENT_CID;
}

static int reach(int fd, unsigned int cid, unsigned int port, int64_t deadline)
{
    struct sockaddr_un address;
    struct timespec pause = {.tv_nsec = PAUSE_NS};
    port_path(&address, port);
    if (!is_parent(cid))
        snprintf(address.sun_path, sizeof(address.sun_path), "%s/cid/%u/vsock.sock", run_directory, cid);
    while (real_connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        if (errno == ENOENT)
            return fail(is_parent(cid) ? ECONNRESET : ENODEV);
        if (errno == ECONNREFUSED)
            return fail(ECONNRESET);
        if (errno != EAGAIN)
            return -1;
        if (milliseconds() >= deadline)
            return fail(ETIMEDOUT);
        nanosleep(&pause, NULL);
    }
    return 0;
}

/* Read one line and not a byte more: what follows is the enclave's. */
static int read_line(int fd, char line[static LINE], int64_t deadline)
{
    size_t used = 0;
    while (used < LINE - 1) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        int64_t left = deadline - milliseconds();
        if (left <= 0)
            return fail(ETIMEDOUT);
        if (poll(&ready, 1, (int)left) < 1)
            continue; /* over, or interrupted: the clock decides */
        ssize_t ahead = recv(fd, line + used, LINE - 1 - used, MSG_PEEK | MSG_DONTWAIT);
        if (ahead == 0 || (ahead < 0 && errno != EAGAIN && errno != EINTR))
            return fail(ECONNRESET);
        if (ahead < 0)
            continue;
        char *end = memchr(line + used, '\n', (size_t)ahead);
        size_t wanted = end ? (size_t)(end - line - (ptrdiff_t)used) + 1 : (size_t)ahead;
        if (recv(fd, line + used, wanted, MSG_DONTWAIT) != (ssize_t)wanted)
            return fail(ECONNRESET);
        used += wanted;
        if (end) {
            line[used] = '\0';
            return 0;
        }
    }
    return fail(EPROTO);
}

static int handshake(int fd, unsigned int port, unsigned int *number, int64_t deadline)
{
    char line[LINE];
    int length = snprintf(line, sizeof(line), "CONNECT %u\n", port);
    if (send(fd, line, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT) != length)
        return fail(ECONNRESET);
    if (read_line(fd, line, deadline) < 0)
        return -1;
    return sscanf(line, "OK %10u", number) == 1 ? 0 : fail(EPROTO);
}

/* A Unix socket connects once; give a program that tries again a new one under the old number. */
static void renew(int fd, struct entry *entry)
{
    struct stat status;
    int before = errno, flags = fcntl(fd, F_GETFL), descriptor = fcntl(fd, F_GETFD);
    int type = SOCK_STREAM | SOCK_CLOEXEC | (flags >= 0 && flags & O_NONBLOCK ? SOCK_NONBLOCK : 0);
    int fresh = real_socket(AF_UNIX, type, 0);
    if (fresh >= 0 && descriptor >= 0 && fstat(fresh, &status) == 0 &&
        real_dup3(fresh, fd, descriptor & FD_CLOEXEC ? O_CLOEXEC : 0) == fd) {
        atomic_store(&entry->inode, status.st_ino);
        if (entry->kind == BOUND)
            reserve_port(fd, entry, entry->bound_cid, entry->port);
    }
    if (fresh >= 0)
        real_close(fresh);
    errno = before;
}

int dial(int fd, struct entry *entry, unsigned int cid, unsigned int port)
{
    struct sockaddr_un name;
    int64_t deadline = milliseconds() + entry->timeout.tv_sec * 1000 + entry->timeout.tv_usec / 1000;
    unsigned int own = entry->kind == BOUND ? entry->port : any_number() | 1u << 31;
    if (entry->kind == FRESH) {
        socklen_t length = client_name(&name, own, cid, port);
        if (real_bind(fd, (const struct sockaddr *)&name, length) < 0)
            return -1;
    } else {
        withdraw_port(entry); /* it was for the number only */
    }
    if (reach(fd, cid, port, deadline) < 0 || (!is_parent(cid) && handshake(fd, port, &own, deadline) < 0)) {
        renew(fd, entry);
        return -1;
    }
    entry->kind = CONNECTED;
    entry->port = own;
    entry->peer_cid = cid;
    entry->peer_port = port;
    return 0;
}
