/*
 * The preload library of `alcove exec`: AF_VSOCK for unmodified programs of the parent, on any host.
 *
 * A vsock socket of the program is a Unix socket in truth, so that reading, writing, polling, shutdown and passing it on
 * are the kernel's business. Only the calls that name addresses are ours:
 *   connect(enclave's CID, port)   <run>/cid/<CID>/vsock.sock, with the hybrid handshake (dial.c)
 *   bind, listen                   <run>/vsock/<port>.sock (ports.c)
 *   accept, getsockname, getpeername, the options of AF_VSOCK, SO_DOMAIN, and /dev/vsock's local CID
 * Everything else, and every other address family, passes through. Not covered: programs without the C library's
 * dynamic linking (static ones, most of Go's), and datagram or seqpacket sockets, which enclaves do not have either.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "preload.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICE_PATH "/dev/vsock"
#define LOCAL_CID_REQUEST 0x7b9 /* IOCTL_VM_SOCKETS_GET_LOCAL_CID, _IO(7, 0xb9) */
#define TIMEOUT_OLD 6 /* SO_VM_SOCKETS_CONNECT_TIMEOUT; the same two words as _NEW on 64-bit machines */
#define TIMEOUT_NEW 8

/* Ours under the C library's name: declared by another, since the C library's own headers differ in detail. */
#define OURS(name) __asm__(#name) __attribute__((visibility("default")))

#define REAL(name, parameters, arguments)                                                                              \
    int real_##name parameters                                                                                         \
    {                                                                                                                  \
        static _Atomic(void *) found;                                                                                  \
        int(*function) parameters = (int(*) parameters)next(&found, #name);                                            \
        return function ? function arguments : fail(ENOSYS);                                                           \
    }

static void *next(_Atomic(void *) *found, const char *name)
{
    void *function = atomic_load(found);
    if (!function) {
        function = dlsym(RTLD_NEXT, name);
        atomic_store(found, function);
    }
    return function;
}

REAL(socket, (int family, int type, int protocol), (family, type, protocol))
REAL(bind, (int fd, const struct sockaddr *address, socklen_t length), (fd, address, length))
REAL(connect, (int fd, const struct sockaddr *address, socklen_t length), (fd, address, length))
REAL(listen, (int fd, int backlog), (fd, backlog))
REAL(accept, (int fd, struct sockaddr *address, socklen_t *length), (fd, address, length))
REAL(accept4, (int fd, struct sockaddr *address, socklen_t *length, int flags), (fd, address, length, flags))
REAL(getsockname, (int fd, struct sockaddr *address, socklen_t *length), (fd, address, length))
REAL(getpeername, (int fd, struct sockaddr *address, socklen_t *length), (fd, address, length))
REAL(setsockopt, (int fd, int level, int name, const void *value, socklen_t size), (fd, level, name, value, size))
REAL(getsockopt, (int fd, int level, int name, void *value, socklen_t *size), (fd, level, name, value, size))
REAL(close, (int fd), (fd))
REAL(dup, (int fd), (fd))
REAL(dup2, (int from, int to), (from, to))
REAL(dup3, (int from, int to, int flags), (from, to, flags))

/* The variadic ones: one argument more, as wide as any. */
typedef int (*variadic_int)(int, unsigned long, ...);

int our_socket(int family, int type, int protocol) OURS(socket);
int our_bind(int fd, const struct sockaddr *address, socklen_t length) OURS(bind);
int our_connect(int fd, const struct sockaddr *address, socklen_t length) OURS(connect);
int our_listen(int fd, int backlog) OURS(listen);
int our_accept(int fd, struct sockaddr *address, socklen_t *length) OURS(accept);
int our_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) OURS(accept4);
int our_getsockname(int fd, struct sockaddr *address, socklen_t *length) OURS(getsockname);
int our_getpeername(int fd, struct sockaddr *address, socklen_t *length) OURS(getpeername);
int our_setsockopt(int fd, int level, int name, const void *value, socklen_t size) OURS(setsockopt);
int our_getsockopt(int fd, int level, int name, void *value, socklen_t *size) OURS(getsockopt);
int our_close(int fd) OURS(close);
int our_dup(int fd) OURS(dup);
int our_dup2(int from, int to) OURS(dup2);
int our_dup3(int from, int to, int flags) OURS(dup3);
int our_fcntl(int fd, int command, ...) OURS(fcntl);
int our_fcntl64(int fd, int command, ...) OURS(fcntl64);
int our_ioctl(int fd, unsigned long request, ...) OURS(ioctl);
int our_open(const char *path, int flags, ...) OURS(open);
int our_open64(const char *path, int flags, ...) OURS(open64);
int our_openat(int directory, const char *path, int flags, ...) OURS(openat);
int our_openat64(int directory, const char *path, int flags, ...) OURS(openat64);
int our_open_2(const char *path, int flags) OURS(__open_2);
int our_open64_2(const char *path, int flags) OURS(__open64_2);

static int put_address(struct sockaddr *address, socklen_t *length, unsigned int cid, unsigned int port)
{
    struct sockaddr_vm made = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    if (!address || !length)
        return fail(EFAULT);
    if ((int)*length < 0)
        return fail(EINVAL);
    memcpy(address, &made, *length < sizeof(made) ? *length : sizeof(made));
    *length = sizeof(made);
    return 0;
}

/* The address a program gives; NULL, with errno set, when it is none of ours. */
static const struct sockaddr_vm *vsock_address(const struct sockaddr *address, socklen_t length)
{
    if (!address || length < sizeof(struct sockaddr_vm))
        fail(EINVAL);
    else if (address->sa_family != AF_VSOCK)
        fail(EAFNOSUPPORT);
    else
        return (const struct sockaddr_vm *)(const void *)address;
    return NULL;
}

int our_socket(int family, int type, int protocol)
{
    if (family != AF_VSOCK || !run_directory[0])
        return real_socket(family, type, protocol);
    if ((type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) != SOCK_STREAM)
        return fail(ESOCKTNOSUPPORT);
    if (protocol && protocol != PF_VSOCK)
        return fail(EPROTONOSUPPORT);
    int fd = real_socket(AF_UNIX, type, 0);
    if (fd >= 0 && !mark(fd, FRESH)) {
        real_close(fd);
        return fail(EMFILE);
    }
    return fd;
}

int our_bind(int fd, const struct sockaddr *address, socklen_t length)
{
    struct entry *entry = vsock_of(fd);
    if (!entry)
        return real_bind(fd, address, length);
    const struct sockaddr_vm *wanted = vsock_address(address, length);
    if (!wanted)
        return -1;
    if (entry->kind != FRESH)
        return fail(EINVAL);
    /* a parent's own number in Linux's terms and in Nitro's; there is no loopback device to bind to */
    if (wanted->svm_cid != VMADDR_CID_ANY && wanted->svm_cid != PARENT_CID && wanted->svm_cid != VMADDR_CID_HOST)
        return fail(EADDRNOTAVAIL);
    return reserve_port(fd, entry, wanted->svm_cid, wanted->svm_port);
}

int our_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    struct entry *entry = vsock_of(fd);
    if (!entry)
        return real_connect(fd, address, length);
    const struct sockaddr_vm *peer = vsock_address(address, length);
    if (!peer)
        return -1;
    if (entry->kind > BOUND)
        return fail(EISCONN);
    return dial(fd, entry, peer->svm_cid, peer->svm_port);
}

int our_listen(int fd, int backlog)
{
    struct entry *entry = vsock_of(fd);
    if (!entry)
        return real_listen(fd, backlog);
    return entry->kind == BOUND ? real_listen(fd, backlog) : fail(EINVAL);
}

int our_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    if (!vsock_of(fd))
        return real_accept4(fd, address, length, flags);
    int accepted = real_accept4(fd, NULL, NULL, flags);
    if (accepted < 0)
        return -1;
    struct entry *entry = vsock_of(accepted); /* the kernel has both names */
    if (!entry || (address && put_address(address, length, entry->peer_cid, entry->peer_port) < 0)) {
        real_close(accepted);
        return fail(entry ? EINVAL : EMFILE);
    }
    return accepted;
}

int our_accept(int fd, struct sockaddr *address, socklen_t *length)
{
    return vsock_of(fd) ? our_accept4(fd, address, length, 0) : real_accept(fd, address, length);
}

int our_getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
    struct entry *entry = vsock_of(fd);
    if (!entry)
        return real_getsockname(fd, address, length);
    return put_address(address, length, entry->kind > BOUND ? PARENT_CID : entry->bound_cid, entry->port);
}

int our_getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    struct entry *entry = vsock_of(fd);
    if (!entry)
        return real_getpeername(fd, address, length);
    return entry->kind > BOUND ? put_address(address, length, entry->peer_cid, entry->peer_port) : fail(ENOTCONN);
}

static int set_option(struct entry *entry, int name, const void *value, socklen_t size)
{
    struct timeval timeout;
    if (name == TIMEOUT_OLD || name == TIMEOUT_NEW) {
        if (!value || size < sizeof(timeout))
            return fail(EINVAL);
        memcpy(&timeout, value, sizeof(timeout));
        if (timeout.tv_sec < 0 || timeout.tv_sec > INT32_MAX / 1000 || timeout.tv_usec < 0 || timeout.tv_usec >= 1000000)
            return fail(ERANGE);
        entry->timeout = timeout;
        return 0;
    }
    if (name < 0 || name >= SIZES)
        return fail(ENOPROTOOPT);
    if (!value || size < sizeof(uint64_t))
        return fail(EINVAL);
    memcpy(&entry->sizes[name], value, sizeof(uint64_t)); /* said back; the device has buffers of its own */
    return 0;
}

static int get_option(const void *found, socklen_t known_size, void *value, socklen_t *size)
{
    if (!value || !size)
        return fail(EFAULT);
    if (*size < known_size)
        return fail(EINVAL);
    memcpy(value, found, known_size);
    *size = known_size;
    return 0;
}

int our_setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    struct entry *entry = level == AF_VSOCK ? vsock_of(fd) : NULL;
    return entry ? set_option(entry, name, value, size) : real_setsockopt(fd, level, name, value, size);
}

int our_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
    static const int family = AF_VSOCK;
    int ours = level == AF_VSOCK || (level == SOL_SOCKET && name == SO_DOMAIN);
    struct entry *entry = ours ? vsock_of(fd) : NULL;
    if (!entry)
        return real_getsockopt(fd, level, name, value, size);
    if (level == SOL_SOCKET)
        return get_option(&family, sizeof(family), value, size);
    if (name == TIMEOUT_OLD || name == TIMEOUT_NEW)
        return get_option(&entry->timeout, sizeof(entry->timeout), value, size);
    if (name < 0 || name >= SIZES)
        return fail(ENOPROTOOPT);
    return get_option(&entry->sizes[name], sizeof(uint64_t), value, size);
}

int our_close(int fd)
{
    struct bound bound;
    int was_bound = bound_at(fd, &bound);
    int result = real_close(fd);
    if (was_bound)
        after_close(&bound);
    return result;
}

int our_dup(int fd)
{
    int made = real_dup(fd);
    if (made >= 0)
        copy_entry(fd, made);
    return made;
}

/* dup2 and dup3 close what was there. */
static int duplicate(int from, int to, int flags, int as_dup2)
{
    struct bound bound;
    int was_bound = from != to && bound_at(to, &bound);
    int made = as_dup2 ? real_dup2(from, to) : real_dup3(from, to, flags);
    if (made >= 0) {
        copy_entry(from, made);
        if (was_bound)
            after_close(&bound);
    }
    return made;
}

int our_dup2(int from, int to)
{
    return duplicate(from, to, 0, 1);
}

int our_dup3(int from, int to, int flags)
{
    return duplicate(from, to, flags, 0);
}

static int control(variadic_int function, int fd, int command, void *argument)
{
    if (!function)
        return fail(ENOSYS);
    int result = function(fd, (unsigned long)command, argument);
    if (result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC))
        copy_entry(fd, result);
    return result;
}

#define LAST_ARGUMENT(type, name, after)                                                                               \
    va_list rest;                                                                                                      \
    va_start(rest, after);                                                                                             \
    type name = va_arg(rest, type);                                                                                    \
    va_end(rest)

int our_fcntl(int fd, int command, ...)
{
    static _Atomic(void *) found;
    LAST_ARGUMENT(void *, argument, command);
    return control((variadic_int)next(&found, "fcntl"), fd, command, argument);
}

int our_fcntl64(int fd, int command, ...)
{
    static _Atomic(void *) found;
    LAST_ARGUMENT(void *, argument, command);
    return control((variadic_int)next(&found, "fcntl64"), fd, command, argument);
}

int our_ioctl(int fd, unsigned long request, ...)
{
    static _Atomic(void *) found;
    LAST_ARGUMENT(void *, argument, request);
    struct entry *entry = request == LOCAL_CID_REQUEST ? known(fd) : NULL;
    if (entry && entry->kind == DEVICE && argument) {
        memcpy(argument, &(unsigned int){PARENT_CID}, sizeof(unsigned int));
        return 0;
    }
    variadic_int function = (variadic_int)next(&found, "ioctl");
    return function ? function(fd, request, argument) : fail(ENOSYS);
}

/* /dev/vsock is there on any host, and never the host's own. */
static int open_at(int directory, const char *path, int flags, unsigned int mode)
{
    static _Atomic(void *) found;
    int (*function)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))next(&found, "openat");
    int device = run_directory[0] && path && strcmp(path, DEVICE_PATH) == 0;
    if (!function)
        return fail(ENOSYS);
    int fd = function(directory, device ? "/dev/null" : path, flags, mode);
    if (device && fd >= 0)
        mark(fd, DEVICE);
    return fd;
}

#define MODE(after)                                                                                                    \
    unsigned int mode = 0;                                                                                             \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                                                         \
        LAST_ARGUMENT(unsigned int, given, after);                                                                     \
        mode = given;                                                                                                  \
    }

int our_open(const char *path, int flags, ...)
{
    MODE(flags)
    return open_at(AT_FDCWD, path, flags, mode);
}

int our_open64(const char *path, int flags, ...)
{
    MODE(flags)
    return open_at(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

int our_openat(int directory, const char *path, int flags, ...)
{
    MODE(flags)
    return open_at(directory, path, flags, mode);
}

int our_openat64(int directory, const char *path, int flags, ...)
{
    MODE(flags)
    return open_at(directory, path, flags | O_LARGEFILE, mode);
}

int our_open_2(const char *path, int flags)
{
    return open_at(AT_FDCWD, path, flags, 0);
}

int our_open64_2(const char *path, int flags)
{
    return open_at(AT_FDCWD, path, flags | O_LARGEFILE, 0);
}

/* A program that ends closes its listeners, and their names go. */
__attribute__((destructor)) static void finish(void)
{
    for (int fd = 0; fd <= last_marked(); fd++) {
        struct entry *entry = known(fd);
        if (entry && entry->kind == BOUND)
            our_close(fd);
    }
}
