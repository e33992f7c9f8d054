/*
 * The clock: right when the application starts, and right for as long as it runs.
 *
 * The parent tells the time on a port of its own (enclave/clock.py): for every byte sent to it, "ALCVTIME" and the
 * nanoseconds since 1970 (UTC) as eight bytes, big-endian. A small process asks again every so often; a large error is
 * set right at once, a small one by running a little faster or slower, so that time never goes back for it.
 *
 * Where the port refuses, as on AWS's hypervisor, nothing is started and nothing is changed. Whom an enclave's clock
 * depends on does not change by this: a machine's first time, and its ticks, come from the parent's hypervisor anyway.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "init.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

#define MARK "ALCVTIME"
#define ROUNDS 12 /* the quickest answer is the best, */
#define SURE (SECOND / 1000) /* and this good enough: half its way there and back */
#define PERIOD 20 /* seconds */
#define SECOND 1000000000LL
#define STEP (SECOND / 2) /* beyond it, the clock is set; adjtime would take a quarter of an hour */

struct answer {
    char mark[8];
    unsigned char time[8];
};

static int64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* One question. The parent's time less ours, and how far off that can be; 0 on success. */
static int ask(int fd, int64_t *offset, int64_t *doubt)
{
    struct answer answer;
    uint64_t parent = 0;
    int64_t before = now(CLOCK_MONOTONIC);
    if (send(fd, "", 1, MSG_NOSIGNAL) != 1 || recv(fd, &answer, sizeof(answer), MSG_WAITALL) != sizeof(answer))
        return -1;
    int64_t after = now(CLOCK_MONOTONIC), ours = now(CLOCK_REALTIME);
    if (memcmp(answer.mark, MARK, sizeof(answer.mark)) != 0)
        return -1;
    for (size_t i = 0; i < sizeof(answer.time); i++)
        parent = parent << 8 | answer.time[i];
    if (parent > INT64_MAX / 2) /* so that sums with it are right */
        return -1;
    *doubt = (after - before) / 2;
    *offset = (int64_t)parent + *doubt - ours;
    return 0;
}

/* The best of a few questions; -1 with ECONNRESET when the parent does not tell the time. */
static int measure(int64_t *offset, int64_t *doubt)
{
    struct timeval patience = {.tv_sec = 1};
    int64_t shift, spread;
    int found = -1, fd = connect_parent(TIME_PORT, &patience);
    if (fd < 0)
        return -1;
    for (int i = 0; i < ROUNDS && (found < 0 || *doubt > SURE) && ask(fd, &shift, &spread) == 0; i++)
        if (found < 0 || spread < *doubt) {
            *offset = shift;
            *doubt = spread;
            found = 0;
        }
    close(fd);
    errno = found < 0 ? EPROTO : 0;
    return found;
}

static void set(int64_t offset)
{
    int64_t wanted = now(CLOCK_REALTIME) + offset;
    struct timespec time = {.tv_sec = wanted / SECOND, .tv_nsec = wanted % SECOND};
    if (clock_settime(CLOCK_REALTIME, &time) < 0)
        say("warning: the clock cannot be set: %s", strerror(errno));
}

static void correct(int64_t offset, int64_t doubt)
{
    struct timex slew = {.modes = ADJ_OFFSET_SINGLESHOT, .offset = offset / 1000};
    int64_t error = offset < 0 ? -offset : offset;
    if (error <= doubt) /* an answer that took so long says nothing better than the clock does */
        return;
    if (error > STEP)
        set(offset);
    else
        clock_adjtime(CLOCK_REALTIME, &slew);
}

static void keep(void)
{
    struct timespec period = {.tv_sec = PERIOD};
    int64_t offset, doubt;
    prctl(PR_SET_NAME, "alcove-clock");
    for (;;) {
        nanosleep(&period, NULL);
        if (measure(&offset, &doubt) == 0)
            correct(offset, doubt);
    }
}

void keep_time(void)
{
    int64_t offset, doubt;
    if (measure(&offset, &doubt) == 0)
        set(offset); /* nothing has seen the time yet */
    else if (errno != ETIMEDOUT)
        return; /* refused, or by something else: nobody here tells the time */
    pid_t pid = fork();
    if (pid < 0)
        say("warning: the clock will not be kept: %s", strerror(errno));
    if (pid == 0)
        keep();
}
