/*
 * The first process of an enclave: /init of the boot ramdisk.
 *
 * It does what AWS's init does, in the same order (docs/spec, eif.md section 10), so that an image built for Nitro
 * Enclaves finds the world it expects. Differences, all of them additions:
 *   - modules under /modules are loaded in name order, as distribution kernels have virtio and vsock as modules;
 *   - the heartbeat's connect is tried for a few seconds, as the vsock device may appear a moment after its driver;
 *   - the loopback interface is brought up;
 *   - the application's exit status is printed, and reported to the parent on the heartbeat's port (see report);
 *   - the clock is set, and kept, by the parent's where the parent offers it (clock.c);
 *   - with a file /oci (see read_oci) the application starts as a container's does: working directory, user and groups
 *     of the image, searched on the image's PATH;
 *   - with a file /log the parent may see what the application writes (log.c);
 *   - a failure prints one line and restarts the machine at once instead of waiting for a panic's time-out.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define HEARTBEAT_PORT 9000
#define HEARTBEAT_BYTE 0xB7
#define CONNECT_TRIES 50 /* times 100 ms: five seconds, also enough under emulation */
#define CONNECT_PAUSE_US 100000
#define REPORT_SIZE 256 /* bytes, as the parent reads them */
#define DEFAULT_PATH "/sbin:/usr/sbin:/bin:/usr/bin"

#define NDNSNE (MS_NODEV | MS_NOSUID | MS_NOEXEC)

static int reporting; /* since the heartbeat: before it, the parent would take a report for one */
static char *default_cmd[] = {"sh", NULL};
static char *default_env[] = {"PATH=" DEFAULT_PATH, NULL};

void say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("alcove: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

/* End the machine. Returning from process 1 would be a kernel panic; this is the same, without its noise. */
__attribute__((noreturn)) static void restart(void)
{
    sync();
    reboot(RB_AUTOBOOT);
    _exit(1);
}

int connect_parent(unsigned int port, const struct timeval *patience)
{
    struct sockaddr_vm parent = {.svm_family = AF_VSOCK, .svm_cid = PARENT_CID, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && patience) {
        setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, patience, sizeof(*patience));
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, patience, sizeof(*patience));
    }
    if (fd >= 0 && connect(fd, (struct sockaddr *)&parent, sizeof(parent)) < 0) {
        int why = errno;
        close(fd);
        errno = why;
        fd = -1;
    }
    return fd;
}

/*
 * Tell the parent how this ends, in one line. It closes the connection when it has read it; AWS's refuses the
 * connection, and then nobody wants to know.
 */
static void report(const char *format, ...)
{
    char line[REPORT_SIZE];
    struct timeval patience = {.tv_sec = 1};
    va_list args;
    if (!reporting)
        return;
    va_start(args, format);
    int length = vsnprintf(line, sizeof(line) - 1, format, args);
    va_end(args);
    if (length > (int)sizeof(line) - 2)
        length = sizeof(line) - 2;
    line[length++] = '\n';
    int fd = connect_parent(HEARTBEAT_PORT, &patience);
    if (fd < 0)
        return;
    if (write(fd, line, (size_t)length) == length)
        (void)!read(fd, line, 1);
    close(fd);
}

void die(const char *what)
{
    const char *why = errno ? strerror(errno) : "unexpected answer";
    say("init failed: %s: %s", what, why);
    report("init %s: %s", what, why);
    restart();
}

/* 1. Process 1 never takes a signal; its child gets the old mask back. */
static void block_signals(sigset_t *old)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, old);
}

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
    if (mkdir(target, 0755) < 0 && errno != EEXIST && errno != EROFS)
        die(target);
    if (mount(source, target, type, flags, data) < 0)
        die(target);
}

/* 2. The kernel may have mounted /dev already. */
static void early_dev(void)
{
    mkdir("/dev", 0755);
    if (mount("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL) < 0 && errno != EBUSY)
        die("/dev");
}

/* 3. The console becomes standard input, output and error. */
static void open_console(void)
{
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0)
        die("/dev/console");
    for (int target = 0; target < 3; target++)
        if (dup2(fd, target) < 0)
            die("/dev/console");
    if (fd > 2)
        close(fd);
}

/* 4. A module that is missing is skipped; one that does not load is fatal, as nothing works without it. */
static void load_module(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno == ENOENT)
            return;
        die(path);
    }
    if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
        die(path);
    close(fd);
    if (unlink(path) < 0)
        die(path);
}

static int is_module(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name);
    return length > 3 && strcmp(entry->d_name + length - 3, ".ko") == 0;
}

static void load_modules(void)
{
    struct dirent **names;
    char path[sizeof("/modules/") + 256];
    int count = scandir("/modules", &names, is_module, alphasort);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof(path), "/modules/%s", names[i]->d_name);
        load_module(path);
        free(names[i]);
    }
    if (count >= 0) {
        free(names);
        rmdir("/modules");
    }
    load_module("/nsm.ko");
}

/* 5. Tell the parent that the enclave is up, and hear that it was told. */
static void heartbeat(void)
{
    unsigned char byte = HEARTBEAT_BYTE;
    int fd = connect_parent(HEARTBEAT_PORT, NULL);
    for (int i = 1; fd < 0 && i < CONNECT_TRIES; i++) {
        usleep(CONNECT_PAUSE_US);
        fd = connect_parent(HEARTBEAT_PORT, NULL);
    }
    if (fd < 0)
        die("heartbeat: connect to the parent (CID 3, port 9000)");
    errno = 0;
    if (write(fd, &byte, 1) != 1)
        die("heartbeat: write");
    byte = 0;
    errno = 0;
    if (read(fd, &byte, 1) != 1 || byte != HEARTBEAT_BYTE)
        die("heartbeat: read");
    close(fd);
    reporting = 1;
}

static char **read_lines_or(const char *path, char **fallback)
{
    char **lines = read_lines(path);
    if (!lines)
        say("warning: %s: %s; using the default", path, strerror(errno));
    return lines ? lines : fallback;
}

/* 7. The application's root becomes the root. An initramfs cannot be pivoted, so it is covered. */
static void enter_root(void)
{
    if (mount("/rootfs", "/rootfs", NULL, MS_BIND, NULL) < 0 || chdir("/rootfs") < 0)
        die("/rootfs");
    if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        die("/rootfs: make it the root");
}

static void link_dev(const char *target, const char *path)
{
    if (symlink(target, path) < 0 && errno != EEXIST)
        die(path);
}

/* 8. What a Linux application expects to find. */
static void mount_all(void)
{
    must_mount("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL);
    must_mount("proc", "/proc", "proc", NDNSNE, NULL);
    link_dev("/proc/self/fd", "/dev/fd");
    link_dev("/proc/self/fd/0", "/dev/stdin");
    link_dev("/proc/self/fd/1", "/dev/stdout");
    link_dev("/proc/self/fd/2", "/dev/stderr");
    must_mount("tmpfs", "/run", "tmpfs", NDNSNE, "mode=0755");
    must_mount("tmpfs", "/tmp", "tmpfs", NDNSNE, NULL);
    must_mount("shm", "/dev/shm", "tmpfs", NDNSNE, NULL);
    must_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, NULL);
    must_mount("sysfs", "/sys", "sysfs", NDNSNE, NULL);
    must_mount("cgroup_root", "/sys/fs/cgroup", "tmpfs", NDNSNE, "mode=0755");
}

/* 9. Every enabled controller as cgroup version 1. Newer kernels may lack version 1 of one: not worth an enclave. */
static void mount_cgroups(void)
{
    FILE *list = fopen("/proc/cgroups", "r");
    char line[256], name[64], path[sizeof("/sys/fs/cgroup/") + 64];
    int hierarchy, groups, enabled;
    if (!list)
        return;
    while (fgets(line, sizeof(line), list)) {
        if (sscanf(line, "%63s %d %d %d", name, &hierarchy, &groups, &enabled) != 4 || !enabled)
            continue; /* the heading, or a controller that is off */
        snprintf(path, sizeof(path), "/sys/fs/cgroup/%s", name);
        if (mkdir(path, 0755) == 0 && mount(name, path, "cgroup", NDNSNE, name) < 0)
            rmdir(path);
    }
    fclose(list);
}

/* An addition: programs that talk to themselves over 127.0.0.1 work. A kernel without networking is fine too. */
static void loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP;
        if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
            say("warning: lo: %s", strerror(errno));
    }
    close(fd);
}

/* 10. The program is searched on init's path, or with /oci on its own; it sees nothing but its own environment. */
static void execute(char **cmd, char **env, const struct oci *oci)
{
    putenv("PATH=" DEFAULT_PATH);
    if (oci) {
        for (char **entry = env; *entry; entry++)
            if (strncmp(*entry, "PATH=", 5) == 0)
                putenv(*entry);
        become(oci);
    }
    execvpe(cmd[0], cmd, env);
    cannot("run", cmd[0]);
}

static pid_t launch(char **cmd, char **env, const struct oci *oci, const struct log *log, const sigset_t *mask)
{
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        sigprocmask(SIG_SETMASK, mask, NULL);
        setsid();
        if (log->pid > 0 && (dup2(log->output, STDOUT_FILENO) < 0 || dup2(log->output, STDERR_FILENO) < 0))
            cannot("write to", "the log");
        execute(cmd, env, oci);
    }
    return pid;
}

/* 11. Reap everything; when the application ends, so does the enclave. */
static int reap_until(pid_t application)
{
    int status;
    for (;;) {
        pid_t pid = wait(&status);
        if (pid < 0 && errno != EINTR)
            die("wait");
        if (pid == application)
            return status;
    }
}

static int memory_ran_out(void)
{
    FILE *list = fopen("/proc/vmstat", "r");
    char line[128];
    int count = 0;
    while (list && fgets(line, sizeof(line), list))
        if (sscanf(line, "oom_kill %d", &count) == 1)
            break;
    if (list)
        fclose(list);
    return count > 0;
}

static void report_end(int status)
{
    if (WIFEXITED(status)) {
        say("application exited with status %d", WEXITSTATUS(status));
        report("exit %d", WEXITSTATUS(status));
        return;
    }
    int number = WTERMSIG(status);
    say("application was ended by signal %d", number);
    report("%s %d", number == SIGKILL && memory_ran_out() ? "oom" : "signal", number);
}

int main(void)
{
    sigset_t mask;
    if (getpid() != 1) {
        fputs("alcove init: runs as process 1 of an enclave only\n", stderr);
        return 1;
    }
    block_signals(&mask);
    early_dev();
    open_console();
    load_modules();
    heartbeat();
    char **env = read_lines_or("/env", default_env);
    char **cmd = read_lines_or("/cmd", default_cmd);
    struct oci *oci = read_oci("/oci");
    unsigned int log_port = read_log_port("/log");
    struct log log = {0};
    if (!cmd[0])
        cmd = default_cmd;
    enter_root();
    mount_all();
    mount_cgroups();
    loopback_up();
    keep_time();
    if (log_port)
        start_log(log_port, &log);
    int status = reap_until(launch(cmd, env, oci, &log, &mask));
    end_log(&log);
    report_end(status);
    restart();
}
