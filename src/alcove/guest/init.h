/*
 * What the files of the guest's init share. See init.c.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef ALCOVE_INIT_H
#define ALCOVE_INIT_H
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/time.h>
#include <sys/types.h>

#define PARENT_CID 3 /* the parent instance, in Nitro's terms */
#define TIME_PORT 9037 /* enclave/clock.py */
#define LAST_WORDS_PORT 9038 /* enclave/last_words.py */

/* What /oci asks for. */
struct oci {
    const char *directory; /* absolute; made when missing */
    uid_t uid;
    gid_t gid;
    size_t count; /* of groups */
    gid_t *groups;
};

/* The process that shows the application's output; all zero when the image does not ask for it. */
struct log {
    pid_t pid;
    int output; /* where the application writes */
    int end; /* closed when the application has ended */
};

/* init.c */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void die(const char *what) __attribute__((noreturn));
int connect_parent(unsigned int port, const struct timeval *patience);

/* oci.c */
char **read_lines(const char *path);
struct oci *read_oci(const char *path);
void become(const struct oci *oci);
void cannot(const char *what, const char *name) __attribute__((noreturn));

/* clock.c */
void keep_time(void);

/* log.c */
unsigned int read_log_port(const char *path);
void start_log(unsigned int port, struct log *log);
void end_log(struct log *log);
#endif
