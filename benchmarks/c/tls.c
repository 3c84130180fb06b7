/* TLS 1.3 with OpenSSL: tls send PORT BYTES, tls save PORT -, or tls receive PORT KEY_AND_CERTIFICATE
 *
 * send     the source of every TLS stream: the pattern, records gathered to 256 KiB for each system call
 * save     the baseline of sending: the same with standard input, read 256 KiB at a time
 * receive  the baseline of receiving, and the sink of those who save: read-ahead of 64 KiB, blocking SSL_read of 64 KiB
 * Both report as send.c and receive.c do; BENCH_COPY likewise. Nothing is verified: this is about bytes.
 */
#include "common.h"
#include <openssl/err.h>
#include <openssl/ssl.h>

static void check(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "%s failed\n", what);
        ERR_print_errors_fp(stderr);
        exit(1);
    }
}

/* Send the pattern, or without a total standard input. */
static void send_stream(SSL *ssl, int fd, size_t total) {
    char *buffer = aligned_alloc(4096, PASS);
    size_t sent = 0, saving = total == 0;
    BIO *gather = BIO_new(BIO_f_buffer());
    BIO_set_write_buffer_size(gather, 256 << 10);
    fill(buffer, 1);
    SSL_set_bio(ssl, BIO_new_socket(fd, BIO_NOCLOSE), BIO_push(gather, BIO_new_socket(fd, BIO_NOCLOSE)));
    check(SSL_connect(ssl) == 1, "SSL_connect");
    double start = now();
    while (saving || sent < total) {
        ssize_t size = saving ? read(0, buffer, 256 << 10) : (ssize_t)MIN(PASS, total - sent);
        if (!saving)
            stamp(buffer, sent / PASS);
        if (size <= 0)
            break;
        check(SSL_write(ssl, buffer, size) == size, "SSL_write");
        sent += size;
    }
    SSL_shutdown(ssl);
    (void)BIO_flush(SSL_get_wbio(ssl));
    finish(fd);
    report("{\"bytes\": %zu, \"start\": %.9f, \"end\": %.9f}", sent, start, now());
}

static void receive_stream(SSL *ssl, int fd) {
    static char buffer[64 << 10];
    size_t total = 0, reads = 0;
    int size, copying = getenv("BENCH_COPY") != NULL;
    SSL_set_fd(ssl, fd);
    check(SSL_accept(ssl) == 1, "SSL_accept");
    double start = now();
    while ((size = SSL_read(ssl, buffer, sizeof buffer)) > 0) {
        total += size;
        reads++;
        if (copying)
            write_all(1, buffer, size);
    }
    check(SSL_get_error(ssl, size) == SSL_ERROR_ZERO_RETURN, "SSL_read");
    double end = now();
    SSL_shutdown(ssl);
    report("{\"bytes\": %zu, \"reads\": %zu, \"start\": %.9f, \"end\": %.9f}", total, reads, start, end);
}

int main(int argc, char **argv) {
    if (argc != 4)
        return fputs("usage: tls send PORT BYTES | tls save PORT - | tls receive PORT KEY_AND_CERTIFICATE\n", stderr), 2;
    int sending = strcmp(argv[1], "receive") != 0, port = atoi(argv[2]);
    SSL_CTX *context = SSL_CTX_new(sending ? TLS_client_method() : TLS_server_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    if (sending) {
        int fd = connect_to(port);
        send_stream(SSL_new(context), fd, strtoull(argv[3], NULL, 10));
    } else {
        check(SSL_CTX_use_certificate_chain_file(context, argv[3]) == 1, argv[3]);
        check(SSL_CTX_use_PrivateKey_file(context, argv[3], SSL_FILETYPE_PEM) == 1, argv[3]);
        SSL_CTX_set_read_ahead(context, 1);
        SSL_CTX_set_default_read_buffer_len(context, 64 << 10);
        SSL_CTX_set_num_tickets(context, 0);
        receive_stream(SSL_new(context), accept_at(port));
    }
    return 0;
}
