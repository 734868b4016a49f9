/*
 * A libnvidia-ml.so.1 without a GPU: answers what a description file says, for the tests of everything that reads NVML.
 *
 * $NVML_STUB_FILE names the description. It is read anew at each call, so that a running program meets lost GPUs,
 * reloaded drivers and the like; $NVML_STUB_KEEP=1 keeps the first reading (for measurements). Each call's key is
 * appended to $NVML_STUB_LOG, if that is set.
 *
 *     # comment
 *     [system]                                    the library and the driver
 *     nvmlDeviceGetCount_v2 = 2
 *     session = 1                                 another text stands for a reloaded driver: every call fails with
 *                                                 NVML_ERROR_UNINITIALIZED until nvmlInit, and old handles stay invalid
 *     [gpu *]                                     what every GPU answers, unless
 *     nvmlDeviceGetClockInfo 1 = 1980             (function and integer arguments = outputs in the order of the struct)
 *     [gpu 1]                                     its own section says otherwise
 *     nvmlDeviceGetPowerUsage = !3                (! and an nvmlReturn_t: the call fails)
 *     field 82 = 61                               nvmlDeviceGetFieldValues: the field, its value and, unless the value
 *     field 138 4294967295 = 1024 3               is an unsigned int (1), its nvmlValueType_t; a scope follows the field
 *     * = !15                                     every call on this device fails
 *     events = 79 13                              every Xid error so far: those that are added while a program waits for
 *                                                 events come to it, those from before its registration do not
 *     [mig 1 0]                                   MIG instance 0 of GPU 1
 *
 * What is not described is NVML_ERROR_NOT_SUPPORTED. It may be used by several threads, but nvmlShutdown while one of
 * them waits for events ends the program, since with the real library everything could happen. Prototypes and structs follow nvml.h as the Python package
 * nvidia-ml-py declares them.
 */
#define _DEFAULT_SOURCE
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

typedef int Return;
typedef void *Device;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { SYSTEM = -1, CARD = -1, TEXT = 2048, VALUES = 512 };

static _Thread_local char description[1 << 18];
static int references;
static atomic_int waiting;
static char session[TEXT];
static unsigned sessions;

static int read_description(void) {
    static _Thread_local int kept;
    if (kept) return 1;
    const char *path = getenv("NVML_STUB_FILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return 0;
    description[fread(description, 1, sizeof description - 1, file)] = '\0';
    fclose(file);
    kept = getenv("NVML_STUB_KEEP") != NULL;
    return 1;
}

static void log_call(const char *key, int gpu, int mig) {
    const char *path = getenv("NVML_STUB_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    if (gpu == SYSTEM) fprintf(file, "system %s\n", key);
    else if (mig == CARD) fprintf(file, "gpu %d %s\n", gpu, key);
    else fprintf(file, "mig %d %d %s\n", gpu, mig, key);
    fclose(file);
}

typedef struct {
    char session[TEXT], value[TEXT];
    int described;        /* 2: by the device's own section, 1: by [gpu *], 0: not at all */
    Return system, all;   /* what "* = !code" says, of the library and of the device */
} Answer;

/* Everything that the description says about one call, in one pass. */
static int look_up(int gpu, int mig, const char *key, Answer *answer) {
    char own[64], card[64];
    snprintf(card, sizeof card, "[gpu %d]", gpu);
    if (gpu == SYSTEM) snprintf(own, sizeof own, "[system]");
    else if (mig == CARD) snprintf(own, sizeof own, "%s", card);
    else snprintf(own, sizeof own, "[mig %d %d]", gpu, mig);
    memset(answer, 0, sizeof *answer);
    if (!read_description()) return 0;
    int is_own = 0, is_card = 0, is_default = 0, is_system = 0;
    for (const char *line = description, *end; *line; line = *end ? end + 1 : end) {
        end = strchr(line, '\n');
        if (!end) end = line + strlen(line);
        size_t length = (size_t)(end - line);
        if (!length || *line == '#') continue;
        if (*line == '[') {
            is_own = strlen(own) == length && !strncmp(line, own, length);
            is_card = gpu != SYSTEM && strlen(card) == length && !strncmp(line, card, length);
            is_default = gpu != SYSTEM && mig == CARD && length == 7 && !strncmp(line, "[gpu *]", 7);
            is_system = length == 8 && !strncmp(line, "[system]", 8);
            continue;
        }
        const char *equals = strstr(line, " =");
        if (!equals || equals > end) continue;
        const char *from = equals + 2 + (equals + 2 < end && equals[2] == ' ');
        size_t name = (size_t)(equals - line), size = from < end ? (size_t)(end - from) : 0;
        if (size >= TEXT) size = TEXT - 1;
        if (name == 1 && *line == '*') {
            Return code = *from == '!' ? atoi(from + 1) : UNKNOWN;
            if (is_system) answer->system = code;
            if (is_own || is_card || is_default) answer->all = code;
        }
        if (is_system && name == 7 && !strncmp(line, "session", 7)) snprintf(answer->session, size + 1, "%s", from);
        int rank = is_own ? 2 : is_default ? 1 : 0;
        if (rank && rank >= answer->described && strlen(key) == name && !strncmp(line, key, name)) {
            answer->described = rank;
            snprintf(answer->value, size + 1, "%s", from);
        }
    }
    return 1;
}

/* A handle holds the session that issued it, the GPU and the MIG instance, each plus one. */
static Device handle_of(int gpu, int mig) {
    return (Device)(((size_t)sessions << 16) | ((size_t)(gpu + 1) << 8) | (size_t)(mig + 1));
}

static Return ask_place(int gpu, int mig, const char *key, Answer *answer) {
    log_call(key, gpu, mig);
    if (!references || !look_up(gpu, mig, key, answer)) return UNINITIALIZED;
    if (strcmp(answer->session, session)) return UNINITIALIZED;
    if (answer->system) return answer->system;
    if (answer->all) return answer->all;
    if (!answer->described) return NOT_SUPPORTED;
    return *answer->value == '!' ? atoi(answer->value + 1) : SUCCESS;
}

static Return ask(Device device, const char *key, Answer *answer) {
    size_t handle = (size_t)device;
    if (references && handle >> 16 != sessions) return INVALID_ARGUMENT;
    return ask_place((int)(handle >> 8 & 255) - 1, (int)(handle & 255) - 1, key, answer);
}

static int parse(const char *text, u64 *values, int most) {
    int count = 0;
    for (char *end; count < most; text = end, count++) {
        values[count] = strtoull(text, &end, 0);
        if (end == text) break;
    }
    return count;
}

static Return numbers(Device device, const char *key, u64 *values, int count) {
    Answer answer;
    Return code = ask(device, key, &answer);
    if (code) return code;
    return parse(answer.value, values, count) == count ? SUCCESS : UNKNOWN;
}

static Return text(Return code, const Answer *answer, char *out, u32 size) {
    if (code) return code;
    return (u32)snprintf(out, size, "%s", answer->value) < size ? SUCCESS : INSUFFICIENT_SIZE;
}

static const char *with_argument(const char *function, u32 argument) {
    static _Thread_local char key[128];
    snprintf(key, sizeof key, "%s %u", function, argument);
    return key;
}

/* The library ------------------------------------------------------------------------------------------------- */
Return nvmlInitWithFlags(u32 flags) {
    Answer answer;
    (void)flags;
    log_call("nvmlInitWithFlags", SYSTEM, CARD);
    if (!look_up(SYSTEM, CARD, "nvmlInitWithFlags", &answer)) return DRIVER_NOT_LOADED;
    if (answer.described && *answer.value == '!') return atoi(answer.value + 1);
    if (!references || strcmp(session, answer.session)) sessions++;
    strcpy(session, answer.session);
    references++;
    return SUCCESS;
}

Return nvmlShutdown(void) {
    log_call("nvmlShutdown", SYSTEM, CARD);
    if (!references) return UNINITIALIZED;
    if (waiting && references == 1) {
        fprintf(stderr, "nvml_stub: nvmlShutdown while a thread waits for events\n");
        abort();
    }
    references--;
    return SUCCESS;
}

const char *nvmlErrorString(Return code) {
    static char message[32];
    snprintf(message, sizeof message, "stub error %d", code);
    return message;
}

Return nvmlSystemGetDriverVersion(char *out, u32 size) {
    Answer answer;
    return text(ask_place(SYSTEM, CARD, "nvmlSystemGetDriverVersion", &answer), &answer, out, size);
}

Return nvmlSystemGetCudaDriverVersion_v2(int *out) {
    Answer answer;
    Return code = ask_place(SYSTEM, CARD, "nvmlSystemGetCudaDriverVersion_v2", &answer);
    if (!code) *out = atoi(answer.value);
    return code;
}

Return nvmlDeviceGetCount_v2(u32 *out) {
    Answer answer;
    Return code = ask_place(SYSTEM, CARD, "nvmlDeviceGetCount_v2", &answer);
    if (!code) *out = (u32)atoi(answer.value);
    return code;
}

Return nvmlDeviceGetHandleByIndex_v2(u32 index, Device *out) {
    Answer answer;
    u32 count;
    Return code = nvmlDeviceGetCount_v2(&count);
    if (code) return code;
    if (index >= count) return INVALID_ARGUMENT;
    code = ask_place((int)index, CARD, "nvmlDeviceGetHandleByIndex_v2", &answer);
    if (code && code != NOT_SUPPORTED) return code;
    *out = handle_of((int)index, CARD);
    return SUCCESS;
}

/* One device -------------------------------------------------------------------------------------------------- */
#define TEXT_OF(function)                                              \
    Return function(Device device, char *out, u32 size) {              \
        Answer answer;                                                 \
        return text(ask(device, #function, &answer), &answer, out, size); \
    }
TEXT_OF(nvmlDeviceGetName)
TEXT_OF(nvmlDeviceGetUUID)
TEXT_OF(nvmlDeviceGetVbiosVersion)

#define NUMBER_OF(function, type)                              \
    Return function(Device device, type *out) {                \
        u64 value;                                             \
        Return code = numbers(device, #function, &value, 1);   \
        if (!code) *out = (type)value;                         \
        return code;                                           \
    }
NUMBER_OF(nvmlDeviceGetPowerUsage, u32)
NUMBER_OF(nvmlDeviceGetEnforcedPowerLimit, u32)
NUMBER_OF(nvmlDeviceGetTotalEnergyConsumption, u64)
NUMBER_OF(nvmlDeviceGetNumFans, u32)
NUMBER_OF(nvmlDeviceGetFanSpeed, u32)
NUMBER_OF(nvmlDeviceGetCurrentClocksEventReasons, u64)
NUMBER_OF(nvmlDeviceGetCurrentClocksThrottleReasons, u64)
NUMBER_OF(nvmlDeviceGetPcieReplayCounter, u32)
NUMBER_OF(nvmlDeviceGetCurrPcieLinkGeneration, u32)
NUMBER_OF(nvmlDeviceGetCurrPcieLinkWidth, u32)
NUMBER_OF(nvmlDeviceGetMaxMigDeviceCount, u32)

#define NUMBER_OF_ARGUMENT(function)                                                   \
    Return function(Device device, u32 argument, u32 *out) {                           \
        u64 value;                                                                     \
        Return code = numbers(device, with_argument(#function, argument), &value, 1);  \
        if (!code) *out = (u32)value;                                                  \
        return code;                                                                   \
    }
NUMBER_OF_ARGUMENT(nvmlDeviceGetTemperature)
NUMBER_OF_ARGUMENT(nvmlDeviceGetClockInfo)
NUMBER_OF_ARGUMENT(nvmlDeviceGetMaxClockInfo)
NUMBER_OF_ARGUMENT(nvmlDeviceGetFanSpeed_v2)

typedef struct { u32 version, sensor; int celsius; } Temperature;
Return nvmlDeviceGetTemperatureV(Device device, Temperature *out) {
    u64 value;
    Return code = numbers(device, with_argument("nvmlDeviceGetTemperatureV", out->sensor), &value, 1);
    if (!code) out->celsius = (int)value;
    return code;
}

typedef struct { u64 total, free, used; } Memory;
Return nvmlDeviceGetMemoryInfo(Device device, Memory *out) {
    u64 values[3];
    Return code = numbers(device, "nvmlDeviceGetMemoryInfo", values, 3);
    if (!code) *out = (Memory){values[0], values[1], values[2]};
    return code;
}

typedef struct { u32 version; u64 total, reserved, free, used; } Memory2;
Return nvmlDeviceGetMemoryInfo_v2(Device device, Memory2 *out) {
    u64 values[4];
    Return code = numbers(device, "nvmlDeviceGetMemoryInfo_v2", values, 4);
    if (code) return code;
    if (out->version != (sizeof(Memory2) | 2u << 24)) return VERSION_MISMATCH;
    *out = (Memory2){out->version, values[0], values[1], values[2], values[3]};
    return SUCCESS;
}

typedef struct { u32 gpu, memory; } Utilization;
Return nvmlDeviceGetUtilizationRates(Device device, Utilization *out) {
    u64 values[2];
    Return code = numbers(device, "nvmlDeviceGetUtilizationRates", values, 2);
    if (!code) *out = (Utilization){(u32)values[0], (u32)values[1]};
    return code;
}

typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
Return nvmlDeviceGetPciInfo_v3(Device device, Pci *out) {
    Answer answer;
    memset(out, 0, sizeof *out);
    return text(ask(device, "nvmlDeviceGetPciInfo_v3", &answer), &answer, out->bus_id, sizeof out->bus_id);
}

Return nvmlDeviceGetTotalEccErrors(Device device, int severity, int counter, u64 *out) {
    char key[64];
    snprintf(key, sizeof key, "nvmlDeviceGetTotalEccErrors %d %d", severity, counter);
    return numbers(device, key, out, 1);
}

Return nvmlDeviceGetRemappedRows(Device device, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failure) {
    u64 values[4];
    Return code = numbers(device, "nvmlDeviceGetRemappedRows", values, 4);
    if (code) return code;
    *corrected = (u32)values[0], *uncorrected = (u32)values[1];
    *pending = (u32)values[2], *failure = (u32)values[3];
    return SUCCESS;
}

typedef union { double real; u32 small; u64 large; long long signed_large; int signed_small; unsigned short tiny; } Value;
typedef struct { u32 field, scope; long long time, latency; int type; Return code; Value value; } Field;
Return nvmlDeviceGetFieldValues(Device device, int count, Field *fields) {
    Answer answer;
    Return code = ask(device, "nvmlDeviceGetFieldValues", &answer);
    if (code && (answer.described || code != NOT_SUPPORTED)) return code;
    for (Field *field = fields; field < fields + count; field++) {
        char key[64];
        if (field->scope) snprintf(key, sizeof key, "field %u %u", field->field, field->scope);
        else snprintf(key, sizeof key, "field %u", field->field);
        field->code = ask(device, key, &answer);
        if (field->code) continue;
        u64 values[2] = {0, 1};
        if (parse(answer.value, values, 2) < 1) return UNKNOWN;
        field->type = (int)values[1];
        memset(&field->value, 0xAA, sizeof field->value); /* a reader of the wrong member meets nonsense */
        switch (field->type) {
        case 0: field->value.real = strtod(answer.value, NULL); break;
        case 1: field->value.small = (u32)values[0]; break;
        case 5: field->value.signed_small = (int)values[0]; break;
        case 6: field->value.tiny = (unsigned short)values[0]; break;
        default: field->value.large = values[0];
        }
    }
    return SUCCESS;
}

typedef struct { u32 pid; u64 memory; u32 gpu_instance, compute_instance; } Process;
static Return processes(Device device, const char *key, u32 *count, Process *out) {
    Answer answer;
    u64 values[VALUES];
    Return code = ask(device, key, &answer);
    if (code) return code;
    int parsed = parse(answer.value, values, VALUES);
    if (parsed % 4 == 2) { /* the last one without its instances */
        values[parsed++] = 0xFFFFFFFF;
        values[parsed++] = 0xFFFFFFFF;
    }
    u32 found = (u32)parsed / 4, room = out ? *count : 0;
    *count = found;
    if (found > room) return INSUFFICIENT_SIZE;
    for (u32 i = 0; i < found; i++)
        out[i] = (Process){(u32)values[4 * i], values[4 * i + 1], (u32)values[4 * i + 2], (u32)values[4 * i + 3]};
    return SUCCESS;
}
Return nvmlDeviceGetComputeRunningProcesses_v3(Device device, u32 *count, Process *out) {
    return processes(device, "nvmlDeviceGetComputeRunningProcesses_v3", count, out);
}
Return nvmlDeviceGetComputeRunningProcesses_v2(Device device, u32 *count, Process *out) {
    return processes(device, "nvmlDeviceGetComputeRunningProcesses_v2", count, out);
}

typedef struct { u64 reference, violation; } Violation;
Return nvmlDeviceGetViolationStatus(Device device, int policy, Violation *out) {
    u64 value;
    Return code = numbers(device, with_argument("nvmlDeviceGetViolationStatus", (u32)policy), &value, 1);
    if (!code) *out = (Violation){0, value};
    return code;
}

Return nvmlDeviceGetPcieThroughput(Device device, int direction, u32 *out) {
    u64 value;
    Return code = numbers(device, with_argument("nvmlDeviceGetPcieThroughput", (u32)direction), &value, 1);
    if (!code) *out = (u32)value;
    return code;
}

/* Events ------------------------------------------------------------------------------------------------------ */
enum { GPUS = 64, STEP_MILLISECONDS = 5, XID_CRITICAL = 8, GPU_IS_LOST = 15 };
typedef struct { char session[TEXT]; Device devices[GPUS]; int delivered[GPUS]; int count; } EventSet;
typedef struct { Device device; u64 type, data; u32 gpu_instance, compute_instance; } Event;

static int events_of(Device device, u64 *xids, Answer *answer) {
    if (!look_up((int)((size_t)device >> 8 & 255) - 1, CARD, "events", answer)) return 0;
    return parse(answer->value, xids, VALUES);
}

Return nvmlEventSetCreate(EventSet **out) {
    Answer answer;
    Return code = ask_place(SYSTEM, CARD, "nvmlEventSetCreate", &answer);
    if (code && (answer.described || code != NOT_SUPPORTED)) return code;
    *out = calloc(1, sizeof **out);
    strcpy((*out)->session, session);
    return SUCCESS;
}

Return nvmlEventSetFree(EventSet *set) {
    log_call("nvmlEventSetFree", SYSTEM, CARD);
    free(set);
    return SUCCESS;
}

Return nvmlDeviceRegisterEvents(Device device, u64 types, EventSet *set) {
    Answer answer;
    u64 xids[VALUES];
    Return code = ask(device, "nvmlDeviceRegisterEvents", &answer);
    if (code) return code;
    if (types != XID_CRITICAL || set->count == GPUS) return INVALID_ARGUMENT;
    set->devices[set->count] = device;
    set->delivered[set->count++] = events_of(device, xids, &answer);
    return SUCCESS;
}

static Return next_event(EventSet *set, Event *out) {
    Answer answer;
    u64 xids[VALUES];
    Return code = TIMEOUT;
    if (!look_up(SYSTEM, CARD, "nvmlEventSetWait_v2", &answer)) return UNINITIALIZED;
    if (strcmp(answer.session, set->session)) return UNINITIALIZED;
    if (answer.described && *answer.value == '!') return atoi(answer.value + 1);
    for (int i = 0; i < set->count; i++) {
        int known = events_of(set->devices[i], xids, &answer);
        if (known > set->delivered[i]) {
            *out = (Event){set->devices[i], XID_CRITICAL, xids[set->delivered[i]++], ~0u, ~0u};
            return SUCCESS;
        }
        if (answer.all) code = GPU_IS_LOST;
    }
    return code;
}

Return nvmlEventSetWait_v2(EventSet *set, Event *out, u32 milliseconds) {
    Return code;
    waiting++;
    for (u32 waited = 0;; waited += STEP_MILLISECONDS) {
        code = next_event(set, out);
        if (code != TIMEOUT || waited >= milliseconds) break;
        usleep(STEP_MILLISECONDS * 1000);
    }
    waiting--;
    return code;
}

/* MIG --------------------------------------------------------------------------------------------------------- */
Return nvmlDeviceGetMigMode(Device device, u32 *current, u32 *pending) {
    u64 values[2];
    Return code = numbers(device, "nvmlDeviceGetMigMode", values, 2);
    if (!code) *current = (u32)values[0], *pending = (u32)values[1];
    return code;
}

Return nvmlDeviceGetMigDeviceHandleByIndex(Device device, u32 index, Device *out) {
    Answer answer;
    size_t handle = (size_t)device;
    int gpu = (int)(handle >> 8 & 255) - 1;
    if (references && handle >> 16 != sessions) return INVALID_ARGUMENT;
    Return code = ask_place(gpu, (int)index, "nvmlDeviceGetUUID", &answer);
    if (code) return code == NOT_SUPPORTED ? NOT_FOUND : code;
    *out = handle_of(gpu, (int)index);
    return SUCCESS;
}
