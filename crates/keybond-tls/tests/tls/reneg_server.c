/* A server that renegotiates at the worst moments; TLS 1.2, one connection if not said otherwise, prints its port.
 *
 *   reneg_server MODE DIR      DIR holds server.{pem,key}, other.{pem,key}, ca.pem
 *
 * Every mode first reads a 16-byte request.
 *   upload    HelloRequest at once, then 5,000,000 bytes of body; answers "<sha256> <client name>\n"
 *   download  4,000,000 patterned bytes, HelloRequest after the first 2,000,000 of them; reads 2 bytes; answers "<name>\n"
 *   twice     HelloRequest, answers "<name>\n", reads 16 bytes, HelloRequest again
 *   changed   HelloRequest, then comes back with the other certificate
 *   vanish    HelloRequest, then closes the socket at the first byte of the ClientHello
 *   resumable two connections, each as in upload, and whoever wants to may resume, in a renegotiation, too; answers
 *             "<sha256> <client name or nobody> <first handshake>, <renegotiation>\n", each full or resumed
 */
#include <arpa/inet.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define UPLOAD 5000000
#define DOWNLOAD 4000000

static char path[4096];

static const char *in(const char *dir, const char *name) {
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void die(const char *what) {
    fprintf(stderr, "reneg_server: %s\n", what);
    exit(1);
}

static void read_exactly(SSL *ssl, unsigned char *buffer, size_t len) {
    while (len > 0) {
        int n = SSL_read(ssl, buffer, len > 16384 ? 16384 : (int)len);
        if (n <= 0) die("the client went away");
        buffer += n;
        len -= (size_t)n;
    }
}

static void hello_request(SSL *ssl) {
    SSL_set_verify(ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    if (SSL_renegotiate(ssl) != 1 || SSL_do_handshake(ssl) != 1) die("cannot send a HelloRequest");
}

static void finish(SSL *ssl) {
    char nothing;
    /* Only reading drives a renegotiation; peeking at no byte is reading (mod_ssl does it, too). */
    while (SSL_renegotiate_pending(ssl) || SSL_in_init(ssl))
        if (SSL_peek(ssl, &nothing, 0) < 0) die("the renegotiation failed");
}

static void client_name(SSL *ssl, char *name, int len) {
    X509 *certificate = SSL_get1_peer_certificate(ssl);
    if (!certificate) {
        snprintf(name, (size_t)len, "nobody");
        return;
    }
    X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, name, len);
    X509_free(certificate);
}

static void answer(SSL *ssl, const char *text) {
    if (SSL_write(ssl, text, (int)strlen(text)) <= 0) die("cannot answer");
}

/* Asks at once, reads the body meanwhile, and sums it up in hexadecimal digits. */
static int upload(SSL *ssl, char *text) {
    unsigned char *body = malloc(UPLOAD), digest[32];
    hello_request(ssl);
    read_exactly(ssl, body, UPLOAD);
    finish(ssl);
    EVP_Digest(body, UPLOAD, digest, NULL, EVP_sha256(), NULL);
    free(body);
    for (int i = 0; i < 32; i++) sprintf(text + 2 * i, "%02x", digest[i]);
    return 64;
}

static const char *handshake(SSL *ssl) {
    return SSL_session_reused(ssl) ? "resumed" : "full";
}

static void resumable(SSL_CTX *ctx, int listener) {
    unsigned char request[16];
    char name[256], text[512];
    for (int connection = 0; connection < 2; connection++) {
        SSL *ssl = SSL_new(ctx);
        SSL_set_fd(ssl, accept(listener, NULL, NULL));
        if (SSL_accept(ssl) != 1) die("the first handshake failed");
        const char *first = handshake(ssl);
        read_exactly(ssl, request, sizeof request);
        int len = upload(ssl, text);
        client_name(ssl, name, sizeof name);
        sprintf(text + len, " %s %s, %s\n", name, first, handshake(ssl));
        answer(ssl, text);
        SSL_shutdown(ssl);
        close(SSL_get_fd(ssl));
        SSL_free(ssl);
    }
}

int main(int argc, char **argv) {
    if (argc != 3) die("usage");
    const char *mode = argv[1], *dir = argv[2];
    signal(SIGPIPE, SIG_IGN);

    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_max_proto_version(ctx, TLS1_2_VERSION);
    if (!strcmp(mode, "resumable")) {
        SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"reneg", 5);
    } else {
        SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    }
    if (SSL_CTX_use_certificate_file(ctx, in(dir, "server.pem"), SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(ctx, in(dir, "server.key"), SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_load_verify_locations(ctx, in(dir, "ca.pem"), NULL) != 1)
        die("cannot load the certificates");

    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, len) || listen(listener, 2) ||
        getsockname(listener, (struct sockaddr *)&address, &len))
        die("cannot listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    if (!strcmp(mode, "resumable")) {
        resumable(ctx, listener);
        return 0;
    }
    int fd = accept(listener, NULL, NULL);
    SSL *ssl = SSL_new(ctx);
    SSL_set_fd(ssl, fd);
    unsigned char request[16];
    char name[256] = "", text[512];
    if (SSL_accept(ssl) != 1) die("the first handshake failed");
    read_exactly(ssl, request, sizeof request);

    if (!strcmp(mode, "upload")) {
        int len = upload(ssl, text);
        client_name(ssl, name, sizeof name);
        sprintf(text + len, " %s\n", name);
        answer(ssl, text);
    } else if (!strcmp(mode, "download")) {
        unsigned char *body = malloc(DOWNLOAD);
        for (unsigned i = 0; i < DOWNLOAD; i++) body[i] = (unsigned char)((i * 2654435761u) >> 24);
        for (unsigned at = 0; at < DOWNLOAD; at += 10000) {
            if (at == DOWNLOAD / 2) hello_request(ssl);
            if (SSL_write(ssl, body + at, 10000) != 10000) die("cannot write on");
        }
        read_exactly(ssl, request, 2);
        finish(ssl);
        client_name(ssl, name, sizeof name);
        sprintf(text, "%s\n", name);
        answer(ssl, text);
    } else if (!strcmp(mode, "twice")) {
        hello_request(ssl);
        read_exactly(ssl, request, sizeof request);
        finish(ssl);
        client_name(ssl, name, sizeof name);
        sprintf(text, "%s\n", name);
        answer(ssl, text);
        hello_request(ssl);
        read_exactly(ssl, request, sizeof request);
    } else if (!strcmp(mode, "changed")) {
        if (SSL_use_certificate_file(ssl, in(dir, "other.pem"), SSL_FILETYPE_PEM) != 1 ||
            SSL_use_PrivateKey_file(ssl, in(dir, "other.key"), SSL_FILETYPE_PEM) != 1)
            die("cannot load the other certificate");
        hello_request(ssl);
        read_exactly(ssl, request, sizeof request);
    } else if (!strcmp(mode, "vanish")) {
        hello_request(ssl);
        if (recv(fd, request, 1, MSG_PEEK) != 1) die("no ClientHello");
        close(fd);
        return 0;
    } else {
        die("unknown mode");
    }
    SSL_shutdown(ssl);
    return 0;
}
