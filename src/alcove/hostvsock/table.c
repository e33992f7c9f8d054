/*
 * Which descriptors are vsock sockets.
 *
 * Most of it is known to the kernel, in the names of the Unix sockets underneath, so that it survives dup, fork, exec
 * and a descriptor's way to another program:
 *   <run>/vsock//<port>.sock                       a socket bound to a port, or one accepted from it
 *   \0alcove-vsock/3/<port>/<cid><port><random>    a connected one: our own port, then whom it called (hexadecimal)
 *   \0alcove-vsock/<cid>/<port>/<hex>              the peer of an accepted one (devices/vsock/handshake.py)
 * The table holds the rest. It is fixed, indexed by descriptor, and has no lock: two threads that use one descriptor
 * at once may get each other's answer, as with the kernel, and nothing worse.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "preload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT 2 /* seconds, Linux's own for vsock */
#define DEFAULT_SIZE (256 * 1024)

char run_directory[MAX_RUN + 1];
static struct entry table[MAX_FDS];
static _Atomic int highest = -1;

__attribute__((constructor)) static void start(void)
{
    const char *run = getenv("ALCOVE_RUN");
    if (run && run[0] == '/' && strlen(run) <= MAX_RUN)
        strcpy(run_directory, run);
}

int fail(int error)
{
    errno = error;
    return -1;
}

int last_marked(void)
{
    return atomic_load(&highest);
}

uint32_t any_number(void)
{
    uint32_t number;
    if (getrandom(&number, sizeof(number), GRND_NONBLOCK) != sizeof(number)) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        number = (uint32_t)now.tv_nsec ^ (uint32_t)getpid() << 16;
    }
    return number;
}

/* The entry of a descriptor, if it is still about the same file. */
struct entry *known(int fd)
{
    struct stat status;
    if (fd < 0 || fd >= MAX_FDS || !atomic_load(&table[fd].inode))
        return NULL;
    int before = errno;
    if (fstat(fd, &status) < 0 || status.st_ino != atomic_load(&table[fd].inode)) {
        errno = before;
        return NULL;
    }
    return &table[fd];
}

struct entry *mark(int fd, enum kind kind)
{
    struct stat status;
    if (fd < 0 || fd >= MAX_FDS || fstat(fd, &status) < 0) {
        errno = EMFILE;
        return NULL;
    }
    struct entry *entry = &table[fd];
    atomic_store(&entry->inode, 0);
    entry->kind = kind;
    entry->bound_cid = VMADDR_CID_ANY;
    entry->port = entry->peer_cid = entry->peer_port = VMADDR_PORT_ANY;
    entry->file = 0;
    entry->timeout = (struct timeval){.tv_sec = DEFAULT_TIMEOUT};
    for (int i = 0; i < SIZES; i++)
        entry->sizes[i] = DEFAULT_SIZE;
    atomic_store(&entry->inode, status.st_ino);
    int seen = atomic_load(&highest);
    while (seen < fd && !atomic_compare_exchange_weak(&highest, &seen, fd))
        ;
    return entry;
}

void copy_entry(int from, int to)
{
    struct entry *old = known(from);
    if (!old || to == from)
        return;
    struct entry *made = mark(to, old->kind);
    if (!made)
        return;
    made->bound_cid = old->bound_cid;
    made->port = old->port;
    made->peer_cid = old->peer_cid;
    made->peer_port = old->peer_port;
    made->file = old->file;
    made->timeout = old->timeout;
    memcpy(made->sizes, old->sizes, sizeof(made->sizes));
}

socklen_t client_name(struct sockaddr_un *name, unsigned int port, unsigned int cid, unsigned int peer_port)
{
    memset(name, 0, sizeof(*name));
    name->sun_family = AF_UNIX;
    int length = snprintf(name->sun_path + 1, sizeof(name->sun_path) - 1, "alcove-vsock/%d/%u/%08x%08x%08x", PARENT_CID,
                          port, cid, peer_port, any_number());
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

/* A Unix socket's own name or its peer's, with a NUL behind it; 0 when it has none. */
static size_t name_of(int (*get)(int, struct sockaddr *, socklen_t *), int fd, char name[static 128])
{
    struct sockaddr_un address;
    socklen_t length = sizeof(address);
    memset(name, 0, 128);
    if (get(fd, (struct sockaddr *)&address, &length) < 0 || address.sun_family != AF_UNIX || length > sizeof(address))
        return 0;
    size_t size = length - offsetof(struct sockaddr_un, sun_path);
    memcpy(name, address.sun_path, size);
    return size;
}

/* The port in the name of a bound socket. */
static int bound_port(const char *name, unsigned int *port)
{
    char expected[128];
    const char *slash = strrchr(name, '/');
    if (!slash || sscanf(slash, "/%10u.sock", port) != 1)
        return 0;
    snprintf(expected, sizeof(expected), PORT_FORMAT, run_directory, *port);
    return strcmp(name, expected) == 0;
}

static struct entry *recover_bound(int fd, unsigned int port)
{
    char name[128];
    socklen_t size = sizeof(struct sockaddr_un);
    struct sockaddr_un peer;
    int connected = real_getpeername(fd, (struct sockaddr *)&peer, &size) == 0;
    struct entry *entry = mark(fd, connected ? ACCEPTED : BOUND);
    if (!entry)
        return NULL;
    entry->port = port;
    entry->peer_cid = VMADDR_CID_HOST; /* a program of the parent that is not ours */
    entry->peer_port = 0;
    if (connected && name_of(real_getpeername, fd, name) > 1)
        (void)!sscanf(name + 1, "alcove-vsock/%10u/%10u/", &entry->peer_cid, &entry->peer_port);
    return entry;
}

/* What the names say about a descriptor that is not in the table; NULL when it is no vsock socket. */
static struct entry *recover(int fd)
{
    char name[128];
    unsigned int port, cid, peer_port;
    if (name_of(real_getsockname, fd, name) < 2)
        return NULL;
    if (bound_port(name, &port))
        return recover_bound(fd, port);
    if (name[0] || sscanf(name + 1, "alcove-vsock/3/%10u/%8x%8x", &port, &cid, &peer_port) != 3)
        return NULL;
    struct entry *entry = mark(fd, CONNECTED);
    if (entry) {
        entry->port = port;
        entry->peer_cid = cid;
        entry->peer_port = peer_port;
    }
    return entry;
}

struct entry *vsock_of(int fd)
{
    if (!run_directory[0])
        return NULL;
    struct entry *entry = known(fd);
    if (entry)
        return entry->kind >= FRESH ? entry : NULL;
    int before = errno;
    entry = recover(fd);
    errno = before;
    return entry;
}
