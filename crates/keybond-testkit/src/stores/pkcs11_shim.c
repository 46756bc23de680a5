/* A PKCS#11 module that hands every call to another one, except for the faults that a file names.
 *
 * KEYBOND_SHIM_MODULE: the other module. KEYBOND_SHIM_FAULT: the file; it is read at each call.
 * The function list of PKCS#11 2.40 is a version (padded to a pointer) and 68 pointers in a fixed order.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long word;
typedef word (*call)();

enum { GET_SLOT_LIST = 4, OPEN_SESSION = 12, LOGIN = 18, SIGN_INIT = 42, SIGN = 43, FUNCTIONS = 68 };

struct list { unsigned char version[sizeof(void *)]; call functions[FUNCTIONS]; };

static struct list own;
static struct list *other;

static int fault(const char *name) {
    char text[64] = "";
    FILE *file = fopen(getenv("KEYBOND_SHIM_FAULT"), "r");
    if (!file) return 0;
    if (!fgets(text, sizeof text, file)) text[0] = 0;
    fclose(file);
    text[strcspn(text, "\n")] = 0;
    return !strcmp(text, name);
}

static void hang_while(const char *name) {
    while (fault(name)) usleep(5000);
}

static word get_slot_list(unsigned char present, word *slots, word *count) {
    hang_while("hang-all");
    if (fault("removed")) { *count = 0; return 0; }
    return other->functions[GET_SLOT_LIST](present, slots, count);
}

static word open_session(word slot, word flags, void *app, void *notify, word *session) {
    if (fault("removed")) return 0x32; /* CKR_DEVICE_REMOVED */
    if (fault("busy")) return 0xb1; /* CKR_SESSION_COUNT */
    return other->functions[OPEN_SESSION](slot, flags, app, notify, session);
}

static word login(word session, word user, unsigned char *pin, word length) {
    if (fault("pin-locked")) return 0xa4; /* CKR_PIN_LOCKED */
    return other->functions[LOGIN](session, user, pin, length);
}

static word sign_init(word session, word *mechanism, word key) {
    if (fault("no-pss") && *mechanism == 0x0d) return 0x71; /* CKR_MECHANISM_PARAM_INVALID */
    return other->functions[SIGN_INIT](session, mechanism, key);
}

static word sign(word session, void *data, word length, void *out, word *out_length) {
    hang_while("hang-sign");
    if (fault("removed")) return 0x32;
    if (fault("crash-sign")) abort();
    return other->functions[SIGN](session, data, length, out, out_length);
}

word C_GetFunctionList(struct list **list) {
    if (!other) {
        void *module = dlopen(getenv("KEYBOND_SHIM_MODULE"), RTLD_NOW);
        word (*get)(struct list **) = module ? (word (*)(struct list **))dlsym(module, "C_GetFunctionList") : 0;
        if (!get || get(&other)) return 5; /* CKR_GENERAL_ERROR */
        own = *other;
        own.functions[3] = (call)C_GetFunctionList;
        own.functions[GET_SLOT_LIST] = (call)get_slot_list;
        own.functions[OPEN_SESSION] = (call)open_session;
        own.functions[LOGIN] = (call)login;
        own.functions[SIGN_INIT] = (call)sign_init;
        own.functions[SIGN] = (call)sign;
    }
    *list = &own;
    return 0;
}
