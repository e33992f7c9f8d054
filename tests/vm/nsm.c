/*
 * An application for tests that lends its security module to the parent: it connects to the parent's port 5005 and
 * answers each request from there (length in four bytes, little-endian, and CBOR) with what /dev/nsm answers, likewise.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define REQUEST 0x1000 /* what the driver takes and gives */
#define RESPONSE 0x3000

struct nsm_raw { /* linux/nsm.h */
    struct iovec request, response;
};
#define NSM_IOCTL_RAW _IOWR(0x0A, 0, struct nsm_raw)

int main(void)
{
    static unsigned char request[REQUEST], response[RESPONSE];
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = 3, .svm_port = 5005};
    int parent = socket(AF_VSOCK, SOCK_STREAM, 0), nsm = open("/dev/nsm", O_RDWR | O_CLOEXEC);
    uint32_t length;

    if (nsm < 0 || connect(parent, (struct sockaddr *)&address, sizeof(address)) < 0) {
        perror("nsm");
        return 1;
    }
    while (recv(parent, &length, sizeof(length), MSG_WAITALL) == sizeof(length) && length <= REQUEST) {
        struct nsm_raw raw = {{request, length}, {response, RESPONSE}};
        if (recv(parent, request, length, MSG_WAITALL) != (ssize_t)length)
            break;
        length = ioctl(nsm, NSM_IOCTL_RAW, &raw) < 0 ? 0 : (uint32_t)raw.response.iov_len;
        if (send(parent, &length, sizeof(length), MSG_MORE) < 0 || send(parent, response, length, 0) < 0)
            break;
    }
    return 0;
}
