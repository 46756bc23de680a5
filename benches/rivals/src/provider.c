/* provider KEY.pem N: signs N times in PSS with SHA-256 through OpenSSL's provider tpm2; prints the nanoseconds of each. */
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/provider.h>
#include <openssl/rsa.h>
#include <openssl/store.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void check(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s failed\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    check(argc == 3, "usage: provider KEY.pem N:");
    check(OSSL_PROVIDER_load(NULL, "tpm2") && OSSL_PROVIDER_load(NULL, "default"), "OSSL_PROVIDER_load");
    check(EVP_set_default_properties(NULL, "?provider=tpm2"), "EVP_set_default_properties");
    OSSL_STORE_CTX *store = OSSL_STORE_open(argv[1], NULL, NULL, NULL, NULL);
    check(store != NULL, "OSSL_STORE_open");
    EVP_PKEY *key = NULL;
    while (!key && !OSSL_STORE_eof(store)) {
        OSSL_STORE_INFO *info = OSSL_STORE_load(store);
        if (info && OSSL_STORE_INFO_get_type(info) == OSSL_STORE_INFO_PKEY) key = OSSL_STORE_INFO_get1_PKEY(info);
        OSSL_STORE_INFO_free(info);
    }
    OSSL_STORE_close(store);
    check(key != NULL, "reading the key");
    /* The first one is a rehearsal. */
    for (int i = -1, count = atoi(argv[2]); i < count; i++) {
        unsigned char message[32] = {7}, signature[256];
        size_t length = sizeof signature;
        EVP_PKEY_CTX *options = NULL;
        EVP_MD_CTX *context = EVP_MD_CTX_new();
        long long began = now();
        check(context && EVP_DigestSignInit_ex(context, &options, "SHA256", NULL, NULL, key, NULL) > 0, "EVP_DigestSignInit");
        check(EVP_PKEY_CTX_set_rsa_padding(options, RSA_PKCS1_PSS_PADDING) > 0, "padding");
        check(EVP_DigestSign(context, signature, &length, message, sizeof message) > 0, "EVP_DigestSign");
        long long took = now() - began;
        EVP_MD_CTX_free(context);
        if (i >= 0) printf("%lld\n", took);
    }
    EVP_PKEY_free(key);
    return 0;
}
