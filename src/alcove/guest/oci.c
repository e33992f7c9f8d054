/*
 * The files that init reads, and what a container runtime would do before it starts a program.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILE (1024 * 1024) /* /cmd and /env: no exec could pass more */
#define MAX_ID 2147483647 /* what container runtimes accept */

static char *read_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    char *text = calloc(1, MAX_FILE + 1);
    size_t used = 0;
    ssize_t got = 0;
    if (!text)
        die(path);
    while (used < MAX_FILE && (got = read(fd, text + used, MAX_FILE - used)) > 0)
        used += (size_t)got;
    if (got < 0)
        die(path);
    if (used == MAX_FILE) {
        errno = E2BIG;
        die(path);
    }
    close(fd);
    return text;
}

/* 6. One string a line, the last line feed being optional. The file is gone afterwards. NULL when there is none. */
char **read_lines(const char *path)
{
    char *text = read_file(path);
    if (!text)
        return NULL;
    unlink(path);
    size_t count = 0;
    for (char *c = text; *c; c++)
        count += *c == '\n';
    char **lines = calloc(count + 2, sizeof(char *));
    if (!lines)
        die(path);
    size_t used = 0;
    while (*text) {
        lines[used++] = text;
        text = strchrnul(text, '\n');
        if (*text)
            *text++ = '\0';
    }
    return lines;
}

static unsigned int parse_id(const char *text)
{
    unsigned long value = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9' && value <= MAX_ID; c++)
        value = value * 10 + (unsigned long)(*c - '0');
    errno = EINVAL;
    if (c == text || *c || value > MAX_ID)
        die("/oci: not a user or group id");
    return (unsigned int)value;
}

/*
 * /oci is written by build-enclave --oci-entrypoint: working directory, user id, group id, and every supplementary
 * group id, one a line. The names in the image's USER were looked up at build time, so that they are measured.
 */
struct oci *read_oci(const char *path)
{
    char **lines = read_lines(path);
    if (!lines) {
        if (errno != ENOENT)
            die(path);
        return NULL;
    }
    struct oci *oci = calloc(1, sizeof(*oci));
    errno = EINVAL;
    if (!oci || !lines[0] || lines[0][0] != '/' || !lines[1] || !lines[2])
        die("/oci: not a directory, a user and a group");
    oci->directory = lines[0];
    oci->uid = parse_id(lines[1]);
    oci->gid = parse_id(lines[2]);
    for (char **line = lines + 3; *line; line++)
        oci->count++;
    oci->groups = calloc(oci->count + 1, sizeof(gid_t));
    if (!oci->groups)
        die(path);
    for (size_t i = 0; i < oci->count; i++)
        oci->groups[i] = parse_id(lines[3 + i]);
    return oci;
}

/* The application cannot start; its end ends the enclave, with the status a shell would give. */
void cannot(const char *what, const char *name)
{
    int why = errno;
    say("cannot %s %s: %s", what, name, strerror(why));
    _exit(why == ENOENT ? 127 : 126);
}

static int make_directories(const char *path)
{
    char part[PATH_MAX];
    size_t length = strlen(path);
    if (length >= sizeof(part)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0755) < 0 && errno != EEXIST)
            return -1;
    }
    return 0;
}

/* What a container runtime does before it starts a program. Rights are given up last, and groups before the user. */
void become(const struct oci *oci)
{
    if (make_directories(oci->directory) < 0 || chdir(oci->directory) < 0)
        cannot("enter", oci->directory);
    for (int fd = 0; fd < 3; fd++) /* so that the program may open /dev/stdout again */
        if (fchown(fd, oci->uid, (gid_t)-1) < 0 && errno != EINVAL && errno != EROFS)
            cannot("give away", "the console");
    if (setgroups(oci->count, oci->groups) < 0 || setgid(oci->gid) < 0 || setuid(oci->uid) < 0)
        cannot("become", "the image's user");
}
