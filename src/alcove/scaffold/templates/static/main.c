/* @NAME@: what runs in the enclave. It greets whoever connects to vsock port 5000. */
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORT 5000

int main(void)
{
    static const char greeting[] = "hello from @NAME@\n";
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_port = PORT, .svm_cid = VMADDR_CID_ANY};
    int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 16) < 0) {
        perror("@NAME@: vsock");
        return 1;
    }
    printf("@NAME@ waits on vsock port %d\n", PORT);
    fflush(stdout);
    for (;;) {
        int stream = accept(listener, NULL, NULL);
        if (stream < 0)
            continue;
        if (write(stream, greeting, strlen(greeting)) < 0)
            perror("@NAME@: write");
        close(stream);
    }
}
