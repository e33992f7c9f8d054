/*
 * What the files of the preload library share. See preload.c.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef ALCOVE_PRELOAD_H
#define ALCOVE_PRELOAD_H
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/un.h>

#include <linux/vm_sockets.h>

#define PARENT_CID 3 /* the parent instance, in Nitro's terms */
#define MAX_FDS 65536 /* beyond it, socket(AF_VSOCK) says EMFILE */
#define MAX_RUN 80 /* bytes: a port's path and <run>/cid/<cid>/vsock.sock must fit into an address */
/* The second slash is no mistake: it tells our sockets from a program's own Unix sockets on the same file. */
#define PORT_FORMAT "%s/vsock//%u.sock"
#define SIZES 3 /* SO_VM_SOCKETS_BUFFER_SIZE, _MIN_SIZE, _MAX_SIZE, numbered from 0 */

enum kind { FREE, DEVICE, FRESH, BOUND, CONNECTED, ACCEPTED };

/*
 * What the kernel cannot say about a descriptor. An entry is about the file with this inode number: when the descriptor
 * is another file by now, whoever closed the old one, there is no entry.
 */
struct entry {
    _Atomic ino_t inode;
    enum kind kind;
    unsigned int bound_cid; /* as given to bind */
    unsigned int port; /* our own */
    unsigned int peer_cid, peer_port;
    ino_t file; /* of the port we are bound to */
    struct timeval timeout; /* of connect */
    uint64_t sizes[SIZES];
};

/* The C library's own functions, behind ours. */
int real_socket(int, int, int);
int real_bind(int, const struct sockaddr *, socklen_t);
int real_connect(int, const struct sockaddr *, socklen_t);
int real_listen(int, int);
int real_accept4(int, struct sockaddr *, socklen_t *, int);
int real_getsockname(int, struct sockaddr *, socklen_t *);
int real_getpeername(int, struct sockaddr *, socklen_t *);
int real_close(int);
int real_dup3(int, int, int);

/* table.c */
extern char run_directory[MAX_RUN + 1]; /* empty: the library does nothing */
int fail(int error);
struct entry *known(int fd);
struct entry *vsock_of(int fd);
struct entry *mark(int fd, enum kind kind);
void copy_entry(int from, int to);
int last_marked(void);
uint32_t any_number(void);
socklen_t client_name(struct sockaddr_un *name, unsigned int port, unsigned int cid, unsigned int peer_port);

/* ports.c */
struct bound {
    unsigned int port;
    ino_t file;
};
void port_path(struct sockaddr_un *address, unsigned int port);
int reserve_port(int fd, struct entry *entry, unsigned int cid, unsigned int port);
void withdraw_port(const struct entry *entry);
int bound_at(int fd, struct bound *bound);
void after_close(const struct bound *bound);

/* dial.c */
int dial(int fd, struct entry *entry, unsigned int cid, unsigned int port);
#endif
