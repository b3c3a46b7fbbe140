// Preloaded, it lets the wall clock of a process jump by the seconds that the file $AUTOTUNE_TEST_JUMP says.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long jump(void) {
  long seconds = 0;
  FILE* file = fopen(getenv("AUTOTUNE_TEST_JUMP"), "r");
  if (file != NULL) {
    if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
    fclose(file);
  }
  return seconds;
}

int clock_gettime(clockid_t clock, struct timespec* now) {
  int (*real)(clockid_t, struct timespec*) = dlsym(RTLD_NEXT, "clock_gettime");
  int error = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += jump();
  return error;
}

int gettimeofday(struct timeval* restrict now, void* restrict zone) {
  int (*real)(struct timeval*, void*) = dlsym(RTLD_NEXT, "gettimeofday");
  int error = real(now, zone);
  now->tv_sec += jump();
  return error;
}

time_t time(time_t* out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out != NULL) *out = now.tv_sec;
  return now.tv_sec;
}
