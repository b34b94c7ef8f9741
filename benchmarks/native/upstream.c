/*
 * A stand-in for Bedrock's runtime that costs next to nothing: one thread, epoll, HTTP/1.1.
 *
 *     upstream [PORT]          listens on 127.0.0.1, prints the port, ends with its standard input
 *
 * POST .../converse          a small answer with a usage
 * POST .../converse-stream   events as the request's body asks for them, wherever it says
 *                            bench:EVENTS:INTERVAL_US:PAYLOAD_BYTES: that many deltas, so far
 *                            apart; without an interval as fast as the reader takes them
 * GET  /                     what was asked so far, as JSON: requests, how many of them were
 *                            signed, how many streams are open
 *
 * A delta with an interval has the time at which it was sent (CLOCK_MONOTONIC, ns) in its
 * padding, so that the reader on the same machine knows how long it was on its way.
 * Signatures are counted, not checked: the sandbox does that.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "frames.h"

#define MAX_REQUEST (64 * 1024)
#define BLOCK_BYTES (256 * 1024)
#define CHUNK_BYTES (16 * 1024)

static const char ANSWER[] =
    "{\"metrics\":{\"latencyMs\":412},\"output\":{\"message\":{\"content\":[{\"text\":\"A gateway "
    "stands between clients and a service: it knows who asks, decides where a request goes, signs "
    "it on their behalf and hands the answer back unchanged.\"}],\"role\":\"assistant\"}},"
    "\"stopReason\":\"end_turn\",\"usage\":{\"inputTokens\":24,\"outputTokens\":37,"
    "\"totalTokens\":61}}";

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nDate: Sun, 01 Nov 2026 00:00:00 GMT\r\n"
    "Content-Type: application/vnd.amazon.eventstream\r\nTransfer-Encoding: chunked\r\n"
    "Connection: keep-alive\r\nx-amzn-RequestId: 0f5f9c46-8a3a-4d83-a1d5-8b1c1c6a3d4e\r\n\r\n";

static char unary[2048];
static size_t unary_size;

/* Bulk: a block of whole chunks of whole frames, sent again and again; one for each frame size. */
struct block {
    uint32_t payload;
    uint32_t frames;
    size_t size;
    uint8_t *data;
    struct block *next;
};

struct conn {
    int fd;
    bool writing; /* interested in EPOLLOUT */
    size_t in_size;
    char *in; /* a request that is not whole yet */
    uint8_t *out;
    size_t out_size, out_sent; /* what the socket did not take */
    /* a stream */
    bool streaming, tail_sent;
    uint64_t left, interval_ns, due;
    struct block *block;
    size_t block_sent; /* of the block that is under way */
    size_t heap_at;    /* 1-based; 0: not in it */
};

static struct {
    uint64_t requests, is_signed, streams, events;
} stats;

static int epoll_fd, timer_fd;
static struct conn **heap;
static size_t heap_size, heap_room;
static struct block *blocks;

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* Streams by when they are due. */

static void heap_put(size_t at, struct conn *c) {
    heap[at] = c;
    c->heap_at = at;
}

static void heap_move(size_t at) {
    struct conn *c = heap[at];
    while (at > 1 && heap[at / 2]->due > c->due) heap_put(at, heap[at / 2]), at /= 2;
    for (;;) {
        size_t least = at * 2;
        if (least > heap_size) break;
        if (least < heap_size && heap[least + 1]->due < heap[least]->due) least++;
        if (heap[least]->due >= c->due) break;
        heap_put(at, heap[least]), at = least;
    }
    heap_put(at, c);
}

static void heap_add(struct conn *c) {
    if (++heap_size >= heap_room) {
        heap_room = heap_room ? heap_room * 2 : 1024;
        heap = realloc(heap, heap_room * sizeof *heap);
        if (!heap) die("realloc");
    }
    heap_put(heap_size, c);
    heap_move(heap_size);
}

static void heap_remove(struct conn *c) {
    size_t at = c->heap_at;
    if (!at) return;
    struct conn *last = heap[heap_size--];
    c->heap_at = 0;
    if (last != c) heap_put(at, last), heap_move(at);
}

/* Frames. */

static size_t text_header(uint8_t *to, const char *name, const char *value) {
    size_t n = strlen(name), v = strlen(value), at = 0;
    to[at++] = (uint8_t)n;
    memcpy(to + at, name, n), at += n;
    to[at++] = 7;
    to[at++] = v >> 8, to[at++] = v & 0xff;
    memcpy(to + at, value, v);
    return at + v;
}

static size_t frame(uint8_t *to, const char *type, const void *payload, size_t payload_size) {
    size_t at = 12;
    at += text_header(to + at, ":event-type", type);
    at += text_header(to + at, ":content-type", "application/json");
    at += text_header(to + at, ":message-type", "event");
    put32(to + 4, (uint32_t)(at - 12));
    memcpy(to + at, payload, payload_size), at += payload_size;
    put32(to, (uint32_t)(at + 4));
    put32(to + 8, crc32_of(0, to, 8));
    put32(to + at, crc32_of(0, to, at));
    return at + 4;
}

static size_t text_frame(uint8_t *to, const char *type, const char *payload) {
    return frame(to, type, payload, strlen(payload));
}

static size_t chunk_of(uint8_t *to, const uint8_t *data, size_t size) {
    size_t at = (size_t)sprintf((char *)to, "%zx\r\n", size);
    memcpy(to + at, data, size), at += size;
    memcpy(to + at, "\r\n", 2);
    return at + 2;
}

static size_t stamped_delta(uint8_t *to, uint64_t at_ns) {
    char payload[128];
    uint8_t made[512];
    int size = snprintf(payload, sizeof payload,
                        "{\"contentBlockIndex\":0,\"delta\":{\"text\":\" token\"},\"p\":\"@%0*llu\"}",
                        STAMP_DIGITS, (unsigned long long)at_ns);
    return chunk_of(to, made, frame(made, "contentBlockDelta", payload, (size_t)size));
}

static struct block *block_of(uint32_t payload) {
    for (struct block *b = blocks; b; b = b->next)
        if (b->payload == payload) return b;
    static const char start[] = "{\"contentBlockIndex\":0,\"delta\":{\"text\":\"", end[] = "\"}}";
    size_t least = sizeof start + sizeof end;
    size_t size = payload < least ? least : payload;
    char *text = malloc(size);
    uint8_t *one = malloc(size + 256), *chunk = malloc(CHUNK_BYTES + size + 256);
    struct block *b = calloc(1, sizeof *b);
    if (!text || !one || !chunk || !b) die("malloc");
    memset(text, 'x', size);
    memcpy(text, start, sizeof start - 1);
    memcpy(text + size - (sizeof end - 1), end, sizeof end - 1);
    size_t one_size = frame(one, "contentBlockDelta", text, size), chunk_size = 0;
    b->payload = payload;
    uint32_t in_chunk = 0;
    do memcpy(chunk + chunk_size, one, one_size), chunk_size += one_size, in_chunk++;
    while (chunk_size + one_size <= CHUNK_BYTES);
    b->data = malloc(BLOCK_BYTES + chunk_size + 64);
    if (!b->data) die("malloc");
    do b->size += chunk_of(b->data + b->size, chunk, chunk_size), b->frames += in_chunk;
    while (b->size + chunk_size <= BLOCK_BYTES);
    free(text), free(one), free(chunk);
    b->next = blocks;
    return blocks = b;
}

/* Connections. */

static void close_conn(struct conn *c) {
    heap_remove(c);
    if (c->streaming) stats.streams--;
    close(c->fd);
    free(c->in), free(c->out), free(c);
}

static void want(struct conn *c, bool writing) {
    if (c->writing == writing) return;
    c->writing = writing;
    struct epoll_event e = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
}

/* :returns: how much went; -1: the connection is gone. What did not go is kept. */
static ssize_t put(struct conn *c, const void *data, size_t size) {
    ssize_t sent = 0;
    if (!c->out_size) {
        sent = send(c->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return -1;
            sent = 0;
        }
    }
    size_t rest = size - (size_t)sent;
    if (rest) {
        c->out = realloc(c->out, c->out_size + rest);
        if (!c->out) die("realloc");
        memcpy(c->out + c->out_size, (const uint8_t *)data + sent, rest);
        c->out_size += rest;
        want(c, true);
    }
    return (ssize_t)size;
}

static bool flush(struct conn *c) {
    while (c->out_sent < c->out_size) {
        ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN;
        c->out_sent += (size_t)sent;
    }
    free(c->out);
    c->out = NULL;
    c->out_size = c->out_sent = 0;
    return true;
}

static bool end_stream(struct conn *c) {
    uint8_t frames[1024], chunk[1100];
    size_t size = text_frame(frames, "contentBlockStop", "{\"contentBlockIndex\":0}");
    size += text_frame(frames + size, "messageStop", "{\"stopReason\":\"end_turn\"}");
    size += text_frame(frames + size, "metadata",
                       "{\"metrics\":{\"latencyMs\":9},\"usage\":{\"inputTokens\":24,"
                       "\"outputTokens\":37,\"totalTokens\":61}}");
    size = chunk_of(chunk, frames, size);
    memcpy(chunk + size, "0\r\n\r\n", 5);
    c->tail_sent = true;
    c->streaming = false;
    stats.streams--;
    return put(c, chunk, size + 5) >= 0;
}

/* As much of a bulk stream as the socket takes. */
static bool pour(struct conn *c) {
    while (c->streaming && !c->out_size) {
        if (!c->left) return end_stream(c);
        struct block *b = c->block;
        ssize_t sent =
            send(c->fd, b->data + c->block_sent, b->size - c->block_sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return false;
            want(c, true);
            return true;
        }
        c->block_sent += (size_t)sent;
        if (c->block_sent == b->size) c->block_sent = 0, c->left--;
    }
    return true;
}

static bool begin_stream(struct conn *c, const char *body) {
    unsigned long long events = 10, interval_us = 0, payload = 0;
    const char *said = strstr(body, "bench:");
    if (said) sscanf(said, "bench:%llu:%llu:%llu", &events, &interval_us, &payload);
    uint8_t out[1024], made[512];
    size_t size = sizeof STREAM_HEAD - 1;
    memcpy(out, STREAM_HEAD, size);
    size += chunk_of(out + size, made, text_frame(made, "messageStart", "{\"role\":\"assistant\"}"));
    c->streaming = true, c->tail_sent = false;
    stats.streams++;
    c->left = events;
    c->interval_ns = interval_us * 1000;
    if (put(c, out, size) < 0) return false;
    if (c->interval_ns) {
        c->due = now_ns() + c->interval_ns;
        heap_add(c);
        return true;
    }
    c->block = block_of((uint32_t)payload);
    c->block_sent = 0;
    c->left = (events + c->block->frames - 1) / c->block->frames;
    return pour(c);
}

static void drip(void) {
    uint8_t out[1024];
    for (uint64_t now = now_ns(); heap_size && heap[1]->due <= now; now = now_ns()) {
        struct conn *c = heap[1];
        bool well = true;
        if (c->left) {
            c->left--;
            stats.events++;
            size_t size = stamped_delta(out, now_ns());
            well = put(c, out, size) >= 0;
            c->due += c->interval_ns;
            heap_move(1);
        } else {
            heap_remove(c);
            well = end_stream(c);
        }
        if (!well) close_conn(c);
    }
    struct itimerspec next = {0};
    if (heap_size) {
        next.it_value.tv_sec = (time_t)(heap[1]->due / 1000000000u);
        next.it_value.tv_nsec = (long)(heap[1]->due % 1000000000u);
    }
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &next, NULL);
}

static const char *field(const char *head, const char *end, const char *name) {
    size_t size = strlen(name);
    for (const char *line = head; line < end; line = strstr(line, "\r\n") + 2)
        if (!strncasecmp(line, name, size) && line[size] == ':') {
            line += size + 1;
            while (*line == ' ') line++;
            return line;
        }
    return NULL;
}

static bool answer(struct conn *c, char *head, char *body) {
    char *end = strstr(head, "\r\n\r\n") + 2;
    char *space = strchr(head, ' ');
    size_t target = space ? strcspn(space + 1, " ?\r") : 0;
    if (!target) return false;
    if (!strncmp(head, "GET", 3)) {
        char text[256], out[512];
        int size = snprintf(text, sizeof text,
                            "{\"requests\":%llu,\"signed\":%llu,\"streams\":%llu,\"events\":%llu}",
                            (unsigned long long)stats.requests,
                            (unsigned long long)stats.is_signed,
                            (unsigned long long)stats.streams, (unsigned long long)stats.events);
        size = snprintf(out, sizeof out, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, text);
        return put(c, out, (size_t)size) >= 0;
    }
    stats.requests++;
    const char *authorization = field(head, end, "authorization");
    stats.is_signed += authorization && !strncmp(authorization, "AWS4-HMAC-SHA256 ", 17);
    static const char stream[] = "/converse-stream";
    if (target >= sizeof stream - 1 &&
        !memcmp(space + 1 + target - (sizeof stream - 1), stream, sizeof stream - 1))
        return begin_stream(c, body);
    return put(c, unary, unary_size) >= 0;
}

/* Answer the requests that are whole. :returns: false if the connection is to be closed. */
static bool take(struct conn *c) {
    for (;;) {
        if (c->streaming) return true; /* pipelined behind a stream: later */
        c->in[c->in_size] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return c->in_size < MAX_REQUEST;
        char *body = end + 4;
        size_t have = (size_t)(c->in + c->in_size - body), need = 0;
        const char *length = field(c->in, end + 2, "content-length");
        if (length) {
            need = strtoul(length, NULL, 10);
            if (have < need) return (size_t)(body - c->in) + need < MAX_REQUEST;
        } else if (field(c->in, end + 2, "transfer-encoding")) {
            char *last = strstr(body, "0\r\n\r\n");
            if (!last) return c->in_size < MAX_REQUEST;
            need = (size_t)(last + 5 - body);
        }
        char after = body[need];
        body[need] = 0;
        if (!answer(c, c->in, body)) return false;
        body[need] = after;
        size_t used = (size_t)(body - c->in) + need;
        memmove(c->in, c->in + used, c->in_size - used);
        c->in_size -= used;
        if (!c->in_size) return true;
    }
}

static bool readable(struct conn *c) {
    /* The buffer lives only as long as a request: 10,000 open streams are to be cheap. */
    if (!c->in && !(c->in = malloc(MAX_REQUEST + 1))) die("malloc");
    ssize_t got = recv(c->fd, c->in + c->in_size, MAX_REQUEST - c->in_size, 0);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    c->in_size += (size_t)got;
    if (!take(c)) return false;
    if (!c->in_size) free(c->in), c->in = NULL;
    return true;
}

static bool writable(struct conn *c) {
    if (!flush(c)) return false;
    if (c->out_size) return true;
    want(c, false);
    if (c->streaming && c->block) return pour(c);
    return true;
}

int main(int count, char **args) {
    crc_init();
    signal(SIGPIPE, SIG_IGN);
    unary_size = (size_t)snprintf(
        unary, sizeof unary,
        "HTTP/1.1 200 OK\r\nDate: Sun, 01 Nov 2026 00:00:00 GMT\r\nContent-Type: application/json\r\n"
        "Content-Length: %zu\r\nConnection: keep-alive\r\n"
        "x-amzn-RequestId: 0f5f9c46-8a3a-4d83-a1d5-8b1c1c6a3d4e\r\n\r\n%s",
        strlen(ANSWER), ANSWER);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(count > 1 ? (uint16_t)atoi(args[1]) : 0),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    /* Who is not a connection is known by its address. */
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    e.data.ptr = &timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
    e.data.ptr = &epoll_fd;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &e)) die("standard input");

    struct epoll_event events[256];
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            void *who = events[i].data.ptr;
            if (who == &epoll_fd) {
                char byte;
                if (read(STDIN_FILENO, &byte, 1) <= 0) return 0;
            } else if (who == &timer_fd) {
                uint64_t ticks;
                if (read(timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
            } else if (who == &listener) {
                for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
                    struct conn *c = calloc(1, sizeof *c);
                    if (!c) die("calloc");
                    c->fd = fd;
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    e.events = EPOLLIN, e.data.ptr = c;
                    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
                }
            } else {
                struct conn *c = who;
                bool well = true;
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) well = readable(c);
                if (well && events[i].events & EPOLLOUT) well = writable(c);
                if (!well) close_conn(c);
            }
        }
        drip();
    }
}
