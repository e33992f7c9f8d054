/*
 * Ports of the parent: <run>/vsock/<port>.sock, where the supervisors connect for their enclaves.
 *
 * The file of a port goes when nobody holds the socket any more: the last copy of a descriptor is closed, or its program
 * ends. A killed program leaves the file behind; there enclaves are refused, and the next one to bind replaces it.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIRST_PORT 1024 /* of those that the kernel gives by itself */
#define PORT_TRIES 24

void port_path(struct sockaddr_un *address, unsigned int port)
{
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    snprintf(address->sun_path, sizeof(address->sun_path), PORT_FORMAT, run_directory, port);
}

/* Alone among those that lock this directory. Close the result to go on. */
static int lock_ports(void)
{
    char directory[MAX_RUN + 8];
    snprintf(directory, sizeof(directory), "%s/vsock", run_directory);
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (fd >= 0 && flock(fd, LOCK_EX) < 0 && errno == EINTR)
        ;
    return fd;
}

/*
 * Whether some program still holds the socket of this name. A datagram socket asks: of a stream socket it hears that the
 * types differ, and its owner hears nothing; of a file that is nobody's socket it hears a refusal.
 */
static int held(const struct sockaddr_un *address)
{
    int probe = real_socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (probe < 0)
        return 1;
    int alone = real_connect(probe, (const struct sockaddr *)address, sizeof(*address)) < 0 && errno == ECONNREFUSED;
    real_close(probe);
    return !alone;
}

static ino_t file_of(const struct sockaddr_un *address)
{
    struct stat status;
    return lstat(address->sun_path, &status) < 0 ? 0 : status.st_ino;
}

static int bind_to(int fd, unsigned int port, ino_t *file)
{
    struct sockaddr_un address;
    port_path(&address, port);
    int result = real_bind(fd, (const struct sockaddr *)&address, sizeof(address));
    if (result < 0 && errno == EADDRINUSE) {
        if (held(&address) || unlink(address.sun_path) < 0)
            return fail(EADDRINUSE);
        result = real_bind(fd, (const struct sockaddr *)&address, sizeof(address));
    }
    *file = result < 0 ? 0 : file_of(&address);
    return result;
}

int reserve_port(int fd, struct entry *entry, unsigned int cid, unsigned int port)
{
    int any = port == VMADDR_PORT_ANY, result, why;
    if (fchmod(fd, 0600) < 0) /* the file has this mode from its first moment on */
        return -1;
    int lock = lock_ports();
    if (lock < 0)
        return fail(EADDRNOTAVAIL);
    for (int tries = any ? PORT_TRIES : 1; tries > 0; tries--) {
        if (any)
            port = FIRST_PORT + any_number() % (VMADDR_PORT_ANY - FIRST_PORT);
        result = bind_to(fd, port, &entry->file);
        why = errno;
        if (result == 0 || why != EADDRINUSE)
            break;
    }
    real_close(lock);
    if (result < 0)
        return fail(why);
    entry->kind = BOUND;
    entry->bound_cid = cid;
    entry->port = port;
    return 0;
}

/* Remove a port's file, if it is still that one and, unless the caller gives up its own, nobody's. */
static void remove_file(unsigned int port, ino_t file, int given_up)
{
    struct sockaddr_un address;
    int before = errno, lock = lock_ports();
    port_path(&address, port);
    if (lock >= 0 && file && file_of(&address) == file && (given_up || !held(&address)))
        unlink(address.sun_path);
    if (lock >= 0)
        real_close(lock);
    errno = before;
}

void withdraw_port(const struct entry *entry)
{
    remove_file(entry->port, entry->file, 1);
}

int bound_at(int fd, struct bound *bound)
{
    const struct entry *entry = known(fd);
    if (!entry || entry->kind != BOUND)
        return 0;
    *bound = (struct bound){.port = entry->port, .file = entry->file};
    return 1;
}

void after_close(const struct bound *bound)
{
    remove_file(bound->port, bound->file, 0);
}
