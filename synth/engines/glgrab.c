/* Preloaded into an OpenGL game, this library records every frame and keeps the game in step with the recorder.
 *
 * At each buffer swap the render thread reads the back buffer and sends it to the recorder over the UNIX socket $GLGRAB_SOCKET:
 * 3 x uint32 (frame number, width, height), then width * height * 4 bytes BGRA, bottom row first. It then waits for the answer,
 * one uint32: by how many microseconds the game's clock advances until the next swap. So one frame is exactly that much time
 * in the game, however slow or busy the machine is.
 *
 * Clocks and sleeps are virtual in the render thread only. Other threads (a server, mesh builders) keep real time. A read of
 * the clock advances it by one microsecond, so that loops that wait for a time end.
 *
 *   cc -O2 -shared -fPIC -o glgrab.so glgrab.c -ldl -lpthread
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { GL_VIEWPORT = 0x0BA2, GL_PACK_ALIGNMENT = 0x0D05, GL_BGRA = 0x80E1, GL_UNSIGNED_BYTE = 0x1401 };

static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_nanosleep)(const struct timespec *, struct timespec *);
static __thread int is_render_thread = 0;
static int connection = -1;
static int64_t clock_ns = 0, wall_offset_ns = 0, waited_ns = 0, frame_ns = 33333333;
static int reads_beyond_frame = 0;
static uint32_t frame = 0;

__attribute__((constructor)) static void find_real_functions(void) {
    real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_nanosleep = dlsym(RTLD_NEXT, "nanosleep");
}

static int64_t to_ns(const struct timespec *t) { return (int64_t)t->tv_sec * 1000000000LL + t->tv_nsec; }

static int64_t real_now(clockid_t clock) {
    struct timespec t;
    real_gettime(clock, &t);
    return to_ns(&t);
}

static int64_t virtual_now(void) {
    if (waited_ns < frame_ns * 9 / 10) waited_ns += 1000;
    else if (++reads_beyond_frame > 20000) waited_ns += 20000; /* a wait for longer than a frame without a swap */
    return clock_ns + waited_ns;
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    if (!real_gettime) find_real_functions();
    int of_cpu = clock == CLOCK_PROCESS_CPUTIME_ID || clock == CLOCK_THREAD_CPUTIME_ID;
    if (!is_render_thread || of_cpu) return real_gettime(clock, t);
    int64_t now = virtual_now() + (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE ? wall_offset_ns : 0);
    t->tv_sec = now / 1000000000LL;
    t->tv_nsec = now % 1000000000LL;
    return 0;
}

int gettimeofday(struct timeval *tv, void *zone) {
    (void)zone;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    tv->tv_sec = t.tv_sec;
    tv->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}

/* The render thread does not sleep: its clock advances, at most to the end of the frame. */
static int virtual_sleep(int64_t ns) {
    static int sleeps_beyond_frame = 0;
    waited_ns += ns;
    if (waited_ns <= frame_ns * 9 / 10) sleeps_beyond_frame = 0;
    else if (++sleeps_beyond_frame < 200) waited_ns = frame_ns * 9 / 10;
    struct timespec yield = {0, 50000};
    real_nanosleep(&yield, NULL);
    return 0;
}

int nanosleep(const struct timespec *wanted, struct timespec *left) {
    if (!real_nanosleep) find_real_functions();
    return is_render_thread ? virtual_sleep(to_ns(wanted)) : real_nanosleep(wanted, left);
}

int usleep(useconds_t us) {
    struct timespec t = {us / 1000000, (us % 1000000) * 1000L};
    return nanosleep(&t, NULL);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left) {
    static int (*real)(clockid_t, int, const struct timespec *, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_nanosleep");
    if (!is_render_thread) return real(clock, flags, wanted, left);
    return virtual_sleep(flags & TIMER_ABSTIME ? 0 : to_ns(wanted));
}

int select(int n, fd_set *readable, fd_set *writable, fd_set *failed, struct timeval *timeout) {
    static int (*real)(int, fd_set *, fd_set *, fd_set *, struct timeval *);
    if (!real) real = dlsym(RTLD_NEXT, "select");
    if (!is_render_thread || !timeout) return real(n, readable, writable, failed, timeout);
    virtual_sleep(timeout->tv_sec * 1000000000LL + timeout->tv_usec * 1000LL);
    struct timeval at_once = {0, 0};
    return real(n, readable, writable, failed, &at_once);
}

static void transfer(int sending, void *buffer, size_t n) {
    char *p = buffer;
    while (n) {
        ssize_t k = sending ? send(connection, p, n, MSG_NOSIGNAL) : recv(connection, p, n, 0);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) {
            fprintf(stderr, "glgrab: the recorder closed the connection\n");
            _exit(0);
        }
        p += k;
        n -= k;
    }
}

static void connect_to_recorder(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(connection, (struct sockaddr *)&address, sizeof address)) {
        perror("glgrab: cannot reach the recorder");
        _exit(3);
    }
    clock_ns = real_now(CLOCK_MONOTONIC);
    wall_offset_ns = real_now(CLOCK_REALTIME) - clock_ns;
    is_render_thread = 1;
}

static void send_frame(void) {
    static void (*get_integers)(unsigned, int *), (*set_packing)(unsigned, int);
    static void (*read_pixels)(int, int, int, int, unsigned, unsigned, void *);
    static unsigned char *pixels = NULL;
    static size_t size = 0;
    const char *path = getenv("GLGRAB_SOCKET");
    if (!path) return;
    if (!read_pixels) {
        void *gl = dlopen("libGL.so.1", RTLD_NOW | RTLD_GLOBAL);
        get_integers = dlsym(gl, "glGetIntegerv");
        set_packing = dlsym(gl, "glPixelStorei");
        read_pixels = dlsym(gl, "glReadPixels");
    }
    if (connection < 0) connect_to_recorder(path);
    int viewport[4], packing;
    get_integers(GL_VIEWPORT, viewport);
    size_t needed = (size_t)viewport[2] * viewport[3] * 4;
    if (needed > size) {
        pixels = realloc(pixels, needed);
        size = needed;
    }
    get_integers(GL_PACK_ALIGNMENT, &packing);
    set_packing(GL_PACK_ALIGNMENT, 1);
    read_pixels(0, 0, viewport[2], viewport[3], GL_BGRA, GL_UNSIGNED_BYTE, pixels);
    set_packing(GL_PACK_ALIGNMENT, packing);
    uint32_t head[3] = {frame++, viewport[2], viewport[3]}, advance_us;
    transfer(1, head, sizeof head);
    transfer(1, pixels, needed);
    transfer(0, &advance_us, sizeof advance_us);
    frame_ns = advance_us * 1000LL;
    clock_ns += frame_ns > waited_ns ? frame_ns : waited_ns;
    waited_ns = 0;
    reads_beyond_frame = 0;
}

void glXSwapBuffers(void *display, unsigned long drawable) {
    static void (*real)(void *, unsigned long);
    if (!real) real = dlsym(RTLD_NEXT, "glXSwapBuffers");
    if (!real) real = dlsym(dlopen("libGL.so.1", RTLD_NOW), "glXSwapBuffers");
    send_frame();
    real(display, drawable);
}

void SDL_GL_SwapWindow(void *window) {
    static void (*real)(void *);
    if (!real) real = dlsym(RTLD_NEXT, "SDL_GL_SwapWindow");
    send_frame();
    real(window);
}
